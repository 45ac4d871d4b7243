import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from remembrandt.databases.bm25 import (
    Bm25Config,
    Bm25Document,
    Bm25Searcher,
    ElasticsearchLoader,
    build_embedded,
    open_bm25,
)

ASSETS = Path(__file__).parents[2] / "assets" / "bm25"


def read_lines(name: str) -> list[str]:
    return (ASSETS / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def emoji_captions() -> list[str]:
    """600 emoji with their names and keywords: many shared words, symbols beyond the basic plane."""
    return read_lines("emoji.txt")


@pytest.fixture(scope="session")
def taxon_names() -> list[str]:
    """600 scientific names: short, with many equal scores."""
    return read_lines("taxa.txt")


@pytest.fixture
def as_documents() -> Callable[[Sequence[str]], list[Bm25Document]]:
    """Texts as rows 0, 1, … with keys, groups of three, two licences and a style."""

    def convert(texts: Sequence[str]) -> list[Bm25Document]:
        return [
            Bm25Document(
                id=row,
                text=text,
                key=f"key-{row}",
                group=f"group-{row // 3}",
                licence=("MIT", "CC-BY-4.0")[row % 2],
                fields={"style": ("line", "flat", "3d")[row % 3], "artist": f"artist {row % 7}"},
            )
            for row, text in enumerate(texts)
        ]

    return convert


@pytest.fixture
def embed(tmp_path: Path) -> Iterator[Callable[[Sequence[Bm25Document]], Bm25Searcher]]:
    """Builds an embedded index of documents and opens it."""
    with ExitStack() as stack:

        def build(documents: Sequence[Bm25Document]) -> Bm25Searcher:
            folder = tmp_path / uuid.uuid4().hex
            info = build_embedded(iter(documents), folder)
            return stack.enter_context(closing(open_bm25(info, folder, None, Bm25Config(search_threads=2))))

        yield build


@pytest.fixture
def elastic_config(elasticsearch_url: str) -> Bm25Config:
    """The session's node as a user would name it; a single node holds no replicas."""
    return Bm25Config(backend="elasticsearch", url=elasticsearch_url, replicas=0, retry_seconds=60)


@pytest.fixture
def new_loader(elastic_config: Bm25Config) -> Iterator[Callable[..., ElasticsearchLoader]]:
    """Loaders of new indices, which are removed at the end; keywords change the configuration."""
    loaders: list[ElasticsearchLoader] = []

    def create(**changes: object) -> ElasticsearchLoader:
        config = elastic_config.model_copy(update=changes)
        loaders.append(ElasticsearchLoader(config, f"test-{uuid.uuid4().hex}"))
        return loaders[-1]

    yield create
    for loader in loaders:
        loader.delete()
        loader.close()


@pytest.fixture
def load(
    new_loader: Callable[..., ElasticsearchLoader], elastic_config: Bm25Config
) -> Iterator[Callable[..., Bm25Searcher]]:
    """Loads documents into a new Elasticsearch index and opens it."""
    with ExitStack() as stack:

        def into_new_index(documents: Sequence[Bm25Document], **changes: object) -> Bm25Searcher:
            loader = new_loader(**changes)
            loader.create(len(documents))
            loader.write(documents)
            info = loader.finish(len(documents))
            return stack.enter_context(closing(open_bm25(info, None, elastic_config.url, elastic_config)))

        yield into_new_index
