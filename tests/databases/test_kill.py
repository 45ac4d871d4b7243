"""A build that is killed again and again ends as if nothing had happened, and shows nothing before it is done."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from tests.support.builds import BuildProcess, Watcher, milestones, wait_for_milestones

pytestmark = pytest.mark.chaos

BLOCK_SIZE = 16
# What it was begun with, 20 blocks, then rows, trained index, a shard and the gate's answers in it, and BM25.
BEFORE_FINISH = 26
TARGETS = ("driver", "worker", "cluster")


@pytest.fixture(scope="module")
def values(build_values: dict[str, Any]) -> dict[str, Any]:
    return {**build_values, "workers": {"block_size": BLOCK_SIZE, "encoders": 1}}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("place", "seed", "kills"),
    [
        ("file", 0, 3),
        pytest.param("file", 1, 8, marks=pytest.mark.slow),
        pytest.param("s3", 2, 3, marks=[pytest.mark.s3, pytest.mark.slow]),
        pytest.param("s3", 3, 9, marks=[pytest.mark.s3, pytest.mark.slow]),
    ],
)
def test_a_killed_build_ends_like_an_undisturbed_one(
    place: str,
    seed: int,
    kills: int,
    values: dict[str, Any],
    emoji_like_database: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    uri = f"{request.getfixturevalue('s3_uri') if place == 's3' else tmp_path}/drawings"
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, BEFORE_FINISH + 1), min(kills, BEFORE_FINISH)))
    done: list[str] = []
    build = BuildProcess({**values, "uri": uri}, tmp_path)
    try:
        with Watcher(uri, expected_rows=320) as watcher:
            for number, moment in enumerate(moments):
                target = TARGETS[(number + seed) % len(TARGETS)]
                if not wait_for_milestones(build, uri, moment):
                    break
                if target == "worker":
                    killed = build.kill_worker(rng)
                else:
                    killed = True
                    build.kill_driver() if target == "driver" else build.kill_cluster()
                    build.end()
                    build = BuildProcess({**values, "uri": uri}, tmp_path)
                done += [f"{target} at {moment}"] if killed else []
            assert build.wait() == 0, build.tail()
    finally:
        build.end()
    print(
        f"{place}: {len(done)} kills ({', '.join(done)}), {watcher.looks} looks meanwhile, "
        f"{len(milestones(uri))} version"
    )
    assert watcher.looks and not watcher.wrong, watcher.wrong
    assert_same_version(emoji_like_database, uri)


def assert_same_version(expected_uri: str, uri: str) -> None:
    """Ids, keys, texts, images and embeddings byte for byte; the same neighbours with the same scores."""
    with Database.open(expected_uri) as expected, Database.open(uri) as found:
        assert found.version == expected.version
        assert found.dataset.to_table().equals(expected.dataset.to_table())
        ids = np.arange(found.num_rows)
        assert found.embeddings(ids).tobytes() == expected.embeddings(ids).tobytes()
        ours, theirs = found.search_ids(ids, 10), expected.search_ids(ids, 10)
        assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.scores, theirs.scores)
        texts = [row.caption for row in found.rows(ids[::20])]
        assert np.array_equal(found.search_bm25(texts, 5).ids, expected.search_bm25(texts, 5).ids)
    # Some S3 servers go on listing folders that have become empty.
    assert not Catalog.open(uri).store.files("builds")
