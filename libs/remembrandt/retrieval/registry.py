"""Strategies by name, each with its own settings, so that a request or a command line can choose one.

strategy = parse_strategy({"name": "pseudo_query", "num_neighbors": 4, "top_m": 0.1})
conditioning = strategy.condition(database, encode_queries(strategy, database.encoder, seeds=[1, 2, 3]))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from remembrandt.configuration import Config, nearest, parse_config
from remembrandt.databases.hits import Filter
from remembrandt.errors import ConfigError, SearchError
from remembrandt.retrieval import strategies
from remembrandt.retrieval.conditioning import Conditioning
from remembrandt.retrieval.searcher import Searcher

QueryKind = Literal["image", "text", "class", "none"]
"""What a picture starts from: an image, a prompt, a class name, or nothing but its seed."""


@dataclass(frozen=True)
class Queries:
    """What B pictures start from.

    Attributes:
        seeds_B: one a picture. The same seed and query give the same conditioning in any batch.
        embeddings_BD: raw embeddings of the images, prompts or class prompts, as the strategy's `query` says.
        texts: the prompts, for BM25.
    """

    seeds_B: tuple[int, ...]
    embeddings_BD: NDArray[np.float32] | None = None
    texts: tuple[str, ...] = ()

    def required_embeddings(self, strategy: str) -> NDArray[np.float32]:
        """The embeddings, or SearchError."""
        if self.embeddings_BD is None:
            raise SearchError(f"strategy '{strategy}' needs the embedding of each query: encode them first")
        return self.embeddings_BD


class Strategy(Protocol):
    """A strategy ξ with its settings."""

    query: ClassVar[QueryKind]

    @property
    def name(self) -> str: ...

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        """The conditioning items of B pictures, from the rows that `where` allows."""


class Encoder(Protocol):
    """The half of an encoder that queries need. Embeddings are raw."""

    @property
    def class_prompt(self) -> str: ...

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]: ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class ImageStrategy(Config):
    """`strategies.image`."""

    query: ClassVar[QueryKind] = "image"
    name: Literal["image"] = "image"
    num_neighbors: int = Field(4, ge=1)

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        return strategies.image(searcher, queries.required_embeddings(self.name), self.num_neighbors, where)


class TextStrategy(Config):
    """`strategies.text`."""

    query: ClassVar[QueryKind] = "text"
    name: Literal["text"] = "text"

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        return strategies.text(queries.required_embeddings(self.name))


class TextAndNeighborsStrategy(Config):
    """`strategies.text_and_neighbors`."""

    query: ClassVar[QueryKind] = "text"
    name: Literal["text_and_neighbors"] = "text_and_neighbors"
    num_neighbors: int = Field(4, ge=1)

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        return strategies.text_and_neighbors(
            searcher, queries.required_embeddings(self.name), self.num_neighbors, where
        )


class NeighborsStrategy(Config):
    """`strategies.neighbors`, or `strategies.neighbors_bm25` where `similarity` says so."""

    query: ClassVar[QueryKind] = "text"
    name: Literal["neighbors"] = "neighbors"
    num_neighbors: int = Field(4, ge=1)
    similarity: Literal["clip", "bm25"] = "clip"

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        if self.similarity == "bm25":
            if len(queries.texts) != len(queries.seeds_B):
                raise SearchError("strategy 'neighbors' with similarity bm25 needs the text of each query")
            return strategies.neighbors_bm25(searcher, queries.texts, self.num_neighbors, where)
        return strategies.neighbors(searcher, queries.required_embeddings(self.name), self.num_neighbors, where)


class ClassPoolStrategy(Config):
    """`strategies.class_pool`; `pool_size` is l."""

    query: ClassVar[QueryKind] = "class"
    name: Literal["class_pool"] = "class_pool"
    num_neighbors: int = Field(4, ge=1)
    pool_size: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _pool_holds_neighbors(self) -> "ClassPoolStrategy":
        if self.pool_size < self.num_neighbors:
            raise ValueError(f"pool_size {self.pool_size} must not be below num_neighbors {self.num_neighbors}")
        return self

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        classes_BD = queries.required_embeddings(self.name)
        return strategies.class_pool(searcher, classes_BD, queries.seeds_B, self.num_neighbors, self.pool_size, where)


class PseudoQueryStrategy(Config):
    """`strategies.pseudo_query`."""

    query: ClassVar[QueryKind] = "none"
    name: Literal["pseudo_query"] = "pseudo_query"
    num_neighbors: int = Field(4, ge=1)
    top_m: float = Field(1.0, gt=0, le=1)

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        return strategies.pseudo_query(searcher, queries.seeds_B, self.num_neighbors, self.top_m, where)


class ExemplarsStrategy(Config):
    """`strategies.exemplars`: the same rows and embeddings for every picture of the request."""

    query: ClassVar[QueryKind] = "none"
    name: Literal["exemplars"] = "exemplars"
    ids: tuple[int, ...] = ()
    embeddings: tuple[tuple[float, ...], ...] = ()

    @model_validator(mode="after")
    def _gives_something(self) -> "ExemplarsStrategy":
        if not self.ids and not self.embeddings:
            raise ValueError("exemplars need `ids` or `embeddings`")
        if any(row_id < 0 for row_id in self.ids):
            raise ValueError("`ids` are row ids from 0")
        if len({len(embedding) for embedding in self.embeddings}) > 1:
            raise ValueError("`embeddings` must all have the same size")
        return self

    def condition(self, searcher: Searcher, queries: Queries, where: Filter | None = None) -> Conditioning:
        batch = len(queries.seeds_B)
        ids = np.tile(np.asarray(self.ids, dtype=np.int64), (batch, 1)) if self.ids else None
        given = np.tile(np.asarray(self.embeddings, dtype=np.float32), (batch, 1, 1)) if self.embeddings else None
        return strategies.exemplars(searcher, ids, given)


StrategyConfig = Annotated[
    ImageStrategy
    | TextStrategy
    | TextAndNeighborsStrategy
    | NeighborsStrategy
    | ClassPoolStrategy
    | PseudoQueryStrategy
    | ExemplarsStrategy,
    Field(discriminator="name"),
]
"""Any strategy, for a field of another configuration."""

STRATEGIES: dict[str, type[Config]] = {
    "image": ImageStrategy,
    "text": TextStrategy,
    "text_and_neighbors": TextAndNeighborsStrategy,
    "neighbors": NeighborsStrategy,
    "class_pool": ClassPoolStrategy,
    "pseudo_query": PseudoQueryStrategy,
    "exemplars": ExemplarsStrategy,
}


def parse_strategy(value: str | Mapping[str, Any]) -> Strategy:
    """A strategy from its name alone, or from a mapping with `name` and settings.

    Raises:
        ConfigError: unknown name (the nearest one is named), unknown or impossible setting.
    """
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError("a strategy needs a name: " + ", ".join(sorted(STRATEGIES)))
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{name}': {nearest(name, list(STRATEGIES))}")
    return cast(Strategy, parse_config(STRATEGIES[name], values, f"strategy '{name}'"))


def encode_queries(
    strategy: Strategy,
    encoder: Encoder | None,
    *,
    seeds: Sequence[int],
    texts: Sequence[str] = (),
    images: Sequence[Image.Image] = (),
) -> Queries:
    """Encodes what a strategy starts from: images, prompts, or class names put into the encoder's class prompt.

    Raises:
        SearchError: the strategy needs images or texts, and there is not one for each seed.
    """
    given: Sequence[Any] = images if strategy.query == "image" else texts
    if strategy.query != "none" and len(given) != len(seeds):
        noun = {"image": "an image", "text": "a text", "class": "a class name"}[strategy.query]
        raise SearchError(
            f"strategy '{strategy.name}' needs {noun} for each picture: got {len(given)} for {len(seeds)}"
        )
    if strategy.query == "none" or _goes_by_words(strategy):
        return Queries(tuple(seeds), texts=tuple(texts))
    if encoder is None:
        raise SearchError(f"strategy '{strategy.name}' needs an encoder for its queries, and this database has none")
    if strategy.query == "image":
        return Queries(tuple(seeds), encoder.encode_images(images))
    return Queries(tuple(seeds), encoder.encode_texts(texts_to_encode(strategy, encoder, texts)), tuple(texts))


def texts_to_encode(strategy: Strategy, encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """What a strategy asks the encoder for: the prompts, class names put into the class prompt, or nothing."""
    if strategy.query == "class":
        return [encoder.class_prompt.replace("{}", name) for name in texts]
    return list(texts) if strategy.query == "text" and not _goes_by_words(strategy) else []


def _goes_by_words(strategy: Strategy) -> bool:
    return isinstance(strategy, NeighborsStrategy) and strategy.similarity == "bm25"
