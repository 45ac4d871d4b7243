"""Requests of every kind in one batch, and the records that come with the pictures."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError, EncoderMismatchError, SourceError
from remembrandt.generation import DatabaseRef, Generator, PictureRequest, encode_png, read_record
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.retrieval import parse_strategy
from tests.support.models import TINY_RDM, save_tiny_rdm

pytestmark = pytest.mark.ray
MODEL = TINY_RDM.model_copy(update={"context_dim": 64})
FAST = SamplerConfig(solver="dpm_solver++", num_inference_steps=3)


@pytest.fixture(scope="module")
def model(emoji_like_database: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Database.open(emoji_like_database) as database:
        return save_tiny_rdm(tmp_path_factory.mktemp("rdm"), MODEL, encoder=database.manifest.encoder)


@pytest.fixture
def generator(model: Path) -> Iterator[Generator]:
    opened = Generator(RdmSampler.load(model), "tiny")
    yield opened
    opened.close()


def request_for(uri: str, strategy: str, seed: int = 1, where: dict[str, tuple[str, ...]] | None = None,
                **settings: object) -> PictureRequest:  # fmt: skip
    values = {"name": strategy} if strategy == "text" else {"name": strategy, "num_neighbors": 3}
    text = "" if strategy in ("pseudo_query", "exemplars", "image") else "a red circle"
    chosen = parse_strategy({"name": "exemplars", "ids": [3, 1]} if strategy == "exemplars" else values)
    database = DatabaseRef(uri=uri, where=where or {})
    return PictureRequest(text=text, database=database, strategy=chosen, seed=seed, sampler=FAST, **settings)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


def test_one_batch_mixes_strategies_databases_and_guidance(generator: Generator, emoji_like_database: str) -> None:
    styles = Database.open(emoji_like_database).dataset.to_table(columns=["style"]).column("style").to_pylist()
    one_style = {"style": (sorted(set(styles))[0],)}
    requests = [
        request_for(emoji_like_database, "neighbors"),
        request_for(emoji_like_database, "text", guidance_scale=4.0),
        request_for(emoji_like_database, "text_and_neighbors"),
        request_for(emoji_like_database, "class_pool", seed=9),
        request_for(emoji_like_database, "exemplars", guidance_scale=1.0),
        request_for(emoji_like_database, "neighbors", where=one_style),
    ]
    together = generator.generate(requests)
    assert [len(picture.record.neighbors) for picture in together] == [3, 1, 3, 3, 2, 3]
    assert [n.id for n in together[4].record.neighbors] == [3, 1]
    assert together[1].record.neighbors[0].id is None
    assert {n.fields["style"] for n in together[5].record.neighbors if n.fields} == set(one_style["style"])
    for request, picture in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert alone.record == picture.record
        assert np.abs(pixels(alone.image) - pixels(picture.image)).max() <= 1


def test_neighbours_are_those_of_a_search(generator: Generator, emoji_like_database: str) -> None:
    (picture,) = generator.generate([request_for(emoji_like_database, "neighbors")])
    with Database.open(emoji_like_database) as database:
        hits = database.search_texts(["a red circle"], 3)
        rows = database.rows(hits.ids[0])
    assert [n.id for n in picture.record.neighbors] == hits.ids[0].tolist()
    assert [n.score for n in picture.record.neighbors] == pytest.approx(hits.scores[0].tolist(), abs=1e-5)
    assert [(n.key, n.caption, n.licence) for n in picture.record.neighbors] == [
        (row.key, row.caption, row.licence) for row in rows
    ]


def test_a_picture_carries_its_record(generator: Generator, emoji_like_database: str, tmp_path: Path) -> None:
    (picture,) = generator.generate([request_for(emoji_like_database, "neighbors", seed=5)])
    path = tmp_path / "picture.png"
    path.write_bytes(encode_png(picture.image, picture.record))
    assert read_record(path) == picture.record
    with Image.open(path) as image:
        assert image.text["Title"] == "a red circle"
        assert picture.record.neighbors[0].licence in image.text["Source"]
    plain = io.BytesIO()
    picture.image.save(plain, "PNG")
    with pytest.raises(SourceError, match="no record"):
        read_record(io.BytesIO(plain.getvalue()))


def test_a_database_of_another_encoder_is_refused(emoji_like_database: str, tmp_path: Path) -> None:
    other = {"architecture": "ViT-B-32", "weights_sha256": "0" * 64, "preprocessing": "squash"}
    generator = Generator(RdmSampler.load(save_tiny_rdm(tmp_path, MODEL, encoder=other)), "tiny")
    with pytest.raises(EncoderMismatchError, match="ViT-B-32"):
        generator.generate([request_for(emoji_like_database, "neighbors")])


def test_a_model_that_retrieves_needs_a_database(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="name a database"):
        generator.generate([PictureRequest(text="a cat")])


def test_the_baseline_needs_none(tmp_path: Path) -> None:
    plain = MODEL.model_copy(update={"condition": "none"})
    generator = Generator(RdmSampler.load(save_tiny_rdm(tmp_path, plain)), "baseline")
    (picture,) = generator.generate([PictureRequest(seed=3, sampler=FAST)])
    assert picture.record.neighbors == () and picture.image.size == (16, 16)
