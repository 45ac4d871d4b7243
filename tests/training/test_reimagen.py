"""Stages of Re-Imagen on neighbours by BM25: live and precomputed, spread over workers, and painted with afterwards."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.errors import ConfigError, RemembrandtError, SourceError
from remembrandt.generation.cascade import CascadeGenerator, CascadeRequest
from remembrandt.generation.job import SampleCascadeConfig, sample_pictures
from remembrandt.training.feeding import FOUND_TOGETHER
from remembrandt.training.journal import read_journal
from remembrandt.training.reimagen import TrainReimagenConfig, train_reimagen
from tests.support.builds import TrainCascadeProcess
from tests.support.elasticsearch_node import ElasticsearchNode
from tests.support.models import TINY_BASE
from tests.support.processes import wait_until
from tests.support.ray_cluster import RayCluster
from tests.training.conftest import EXCLUDE
from tests.training.workers import train_all

pytestmark = pytest.mark.ray


@pytest.fixture
def values(cascade_values: dict[str, Any]) -> dict[str, Any]:
    """The base stage."""
    return {**cascade_values, "stage": 8}


def variant(values: dict[str, Any], name: str, stage: int = 8, **loop: Any) -> dict[str, Any]:
    """The same run under another name, with other settings of the loop."""
    stages = {size: {**run, "loop": {**run["loop"], **loop}} for size, run in values["stages"].items()}
    return {**values, "name": name, "output": f"{values['output']}-{name}", "stages": stages, "stage": stage}


@pytest.fixture
def precomputed(values: dict[str, Any], tmp_path: Path, ray_cluster: RayCluster) -> dict[str, Any]:
    """The run with neighbours from disk."""
    rows = values["train_set"]
    search = {"num_neighbors": 2, "similarities": ["bm25"], "exclude": EXCLUDE}
    found = {
        "database": rows["uri"], "train_set": {"kind": "database", **rows}, "out": str(tmp_path / "neighbors"),
        "search": search, "workers": {"searchers": 1},
    }  # fmt: skip
    precompute_neighbors(parse_config(PrecomputeConfig, found, "test"))
    changed = {"mode": "precomputed", "precomputed": found["out"], "pool": {}}
    return {**values, "neighbors": {**values["neighbors"], **changed}}


@pytest.fixture
def opened() -> Iterator[list[CascadeGenerator]]:
    generators: list[CascadeGenerator] = []
    yield generators
    for generator in generators:
        generator.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_losses_do_not_depend_on_where_neighbours_come_from_or_on_the_workers(
    values: dict[str, Any], precomputed: dict[str, Any], ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    decoded = {**variant(values, "decoded"), "cache_pixels": False, "cache_text": False}
    disk, live, uncached = train_all([variant(precomputed, "disk"), variant(values, "live"), decoded], 1)
    assert len(disk) == 12 and disk == live
    np.testing.assert_allclose(uncached, live, rtol=1e-3)  # tokens in float16, pictures decoded anew
    (spread,) = train_all([variant(precomputed, "zero-3", zero_stage=3, workers=2)], 2)
    np.testing.assert_allclose(spread, disk, rtol=5e-4)


@pytest.mark.timeout(300)
def test_a_cascade_is_trained_on_live_neighbours_and_paints(
    values: dict[str, Any], tmp_path: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch,
    opened: list[CascadeGenerator],
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    for losses in train_all([values, {**values, "stage": 16}], 1):
        assert len(losses) == 12 and min(losses[-4:]) < min(losses[:4])
    assert (tmp_path / "runs" / "tiny-8" / "samples" / "step-000000012.png").is_file()
    check_pictures(values, tmp_path, opened)


def check_pictures(values: dict[str, Any], tmp_path: Path, opened: list[CascadeGenerator]) -> None:
    """Three sources of neighbours, mixed guidance, in one batch and alone."""
    generator = CascadeGenerator.load(values["output"])
    opened.append(generator)
    ref = {"uri": values["train_set"]["uri"]}
    with Database.open(ref["uri"]) as database:
        image = database.images([7])[0]
    assert image is not None
    image.save(tmp_path / "given.png")
    steps = {"num_inference_steps": 6, "eta": 0.0}
    draws = [
        {"guidance": {"kind": kind, "text_weight": 1.5, "neighbor_weight": 1.5}, "sampler": steps}
        for kind in ("interleaved", "weighted", "joint", "plain")
    ]
    asked: list[dict[str, Any]] = [
        {"text": "a red star", "database": ref},
        {"text": "a red star", "database": ref, "retrieval": "clip", "num_neighbors": 3},
        {"text": "a red star", "database": ref, "retrieval": "given", "ids": [5],
         "pairs": [{"image": str(tmp_path / "given.png"), "caption": "a thing"}]},
        {"text": "a red star", "num_neighbors": 0},
        {"database": ref, "retrieval": "given", "ids": [5]},
    ]  # fmt: skip
    requests = [
        CascadeRequest.model_validate({**request, "stages": [draws[n % 4], draws[(n + 1) % 4]], "seed": 4})
        for n, request in enumerate(asked)
    ]
    pictures = generator.generate(requests)
    assert [len(picture.record.neighbors) for picture in pictures] == [2, 3, 2, 0, 1]
    assert all("star" in neighbor.caption for neighbor in pictures[0].record.neighbors)
    assert pictures[2].record.neighbors[0].id == 5 and pictures[2].record.neighbors[1].id is None
    arrays = [np.asarray(picture.image, dtype=int) for picture in pictures]
    assert all(array.shape == (16, 16, 3) for array in arrays)
    assert len({array.tobytes() for array in arrays}) == 5, "neighbours and guidance matter"
    for request, array in zip(requests, arrays, strict=True):
        (alone,) = generator.generate([request])
        assert abs(np.asarray(alone.image, dtype=int) - array).max() <= 1
    config = SampleCascadeConfig(model=values["output"], out=str(tmp_path / "out"), requests=tuple(requests))
    sample_pictures(config.model_copy(update={"block_size": 2, "samplers": 1}))
    for number, array in enumerate(arrays):
        with Image.open(tmp_path / "out" / "pictures" / f"{number:06d}.png") as picture:
            assert abs(np.asarray(picture, dtype=int) - array).max() <= 1, "stages in actors of their own"
    missing = {"retrieval": "given", "pairs": [{"image": str(tmp_path / "nothing.png"), "caption": ""}]}
    with pytest.raises(SourceError, match=r"cannot read image .*nothing\.png"):
        generator.generate([CascadeRequest.model_validate(missing)])


@pytest.mark.slow
@pytest.mark.elasticsearch
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_training_waits_for_an_elasticsearch_that_is_killed_and_comes_back(
    cascade_values: dict[str, Any], build_values: dict[str, Any], tmp_path: Path, ray_cluster: RayCluster,
    elasticsearch_node: ElasticsearchNode, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    rows = {"uri": str(tmp_path / "databases" / "drawings")}
    bm25 = {"backend": "elasticsearch", "url": elasticsearch_node.url}
    build_database(parse_config(BuildConfig, {**build_values, **rows, "bm25": bm25}, "test"))
    base = cascade_values["stages"][8]
    loop = {**base["loop"], "steps": 60, "checkpoint_every": 5, "prefetch": 1, "sample_every": 0}
    searched = {
        **cascade_values, "train_set": rows, "stages": {8: {**base, "loop": loop}},
        "neighbors": {**cascade_values["neighbors"], "database": rows},
    }  # fmt: skip
    # The address stands in the database: whoever builds with `bm25.url` need not say it again.
    quiet = TrainCascadeProcess({**searched, "name": "quiet"}, tmp_path)
    assert quiet.wait() == 0, quiet.tail()

    disturbed = TrainCascadeProcess({**searched, "name": "disturbed"}, tmp_path)
    try:
        folder = tmp_path / "runs" / "disturbed-8" / "metrics"
        wait_until(lambda: any(folder.glob("*.jsonl")), "the first steps", 200)
        elasticsearch_node.kill()
        seen = len(list(folder.glob("*.jsonl")))
        time.sleep(8)
        # It has the neighbours of this group of steps and of the next; a file is five steps.
        last = seen + 1 + 2 * FOUND_TOGETHER // 5
        assert disturbed.running and len(list(folder.glob("*.jsonl"))) <= last < 12, "it waits"
        elasticsearch_node.restart()
        assert disturbed.wait() == 0, disturbed.tail()
        said = f"Elasticsearch at {elasticsearch_node.url} does not keep up or answer"
        assert said in disturbed.log.read_text(), "and says so"
    finally:
        disturbed.end()
    expected = read_journal(str(tmp_path / "runs" / "quiet-8"))
    assert len(expected) == 60 and read_journal(str(tmp_path / "runs" / "disturbed-8")) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_set": {"uri": "/nowhere/drawings"}}, "/nowhere/drawings"),
        ({"neighbors": {"num_neighbors": 3}}, "set them to the same"),
        ({"neighbors": {"exclude": {"same_key": False}}}, "would be copied"),
        ({"neighbors": {"mode": "precomputed", "precomputed": "/nowhere", "pool": {}}}, "no finished neighbours"),
        ({"text": {"encoder": {"model": "/nowhere"}}}, "/nowhere"),
        ({"stages": {8: {"model": {**TINY_BASE.model_dump(mode="json"), "text_dim": 99}}}}, "set it to 32"),
        ({"stages": {9: {"model": TINY_BASE.model_dump(mode="json")}}}, "set it to 9"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_computed(
    change: dict[str, Any], message: str, values: dict[str, Any]
) -> None:
    del values["stage"]
    changed = {k: {**values[k], **v} if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(RemembrandtError) as caught:
        train_reimagen(parse_config(TrainReimagenConfig, {**values, **changed}, "test"), dry_run=True)
    assert message in str(caught.value)


def test_a_dry_run_says_what_each_stage_would_do(values: dict[str, Any]) -> None:
    del values["stage"]
    config = parse_config(TrainReimagenConfig, values, "test")
    plan = train_reimagen(config, dry_run=True)
    assert plan["8"]["pairs"] == plan["16"]["pairs"] == 320 and plan["8"]["parameters"] > 1000
    assert list(train_reimagen(config, "16", dry_run=True)) == ["16", "dry_run"]
    with pytest.raises(ConfigError, match="--stage 64: the file has 16, 8"):
        train_reimagen(config, "64", dry_run=True)
