import hashlib
import subprocess
import sys

import numpy as np
import pytest

from remembrandt.databases.hits import PAD_ID, top_k
from remembrandt.databases.vectors import (
    ShardFile,
    VectorConfig,
    VectorIndex,
    build_shard,
    exact_search,
    plan_vectors,
    recall_at,
    train_index,
    tune,
)
from remembrandt.errors import ConfigError, CorruptionError

pytest.importorskip("scann")

SCANN = VectorConfig(backend="scann")


def build_scann(vectors, folder):
    plan = plan_vectors(*vectors.shape, SCANN)
    train_index(plan, vectors[: plan.train_rows], folder / "trained")
    assert build_shard(plan, folder / "trained", iter(np.array_split(vectors, 3)), folder / "shard") == len(vectors)
    return plan, folder / "trained", [ShardFile(folder / "shard", 0, len(vectors))]


@pytest.fixture(scope="module")
def many(make_clustered):
    return make_clustered(100_000, 32, 400, seed=7)


@pytest.fixture(scope="module")
def opened(many, tmp_path_factory):
    return VectorIndex.open(*build_scann(many, tmp_path_factory.mktemp("scann")))


@pytest.fixture(scope="module")
def some_queries(make_clustered):
    return make_clustered(200, 32, 400, seed=8)


def test_a_partitioned_index_reaches_the_floor_when_tuned(opened, many, some_queries):
    truth = exact_search(some_queries, [many], 20)

    plan, report = tune(opened, some_queries, truth, 0.95, 20)

    assert report.lower_bound >= 0.95
    assert plan.nprobe < 316


def test_scores_are_cosines(opened, many, some_queries):
    hits = opened.search(some_queries, 5)

    np.testing.assert_allclose(hits.scores, np.einsum("bkd,bd->bk", many[hits.ids], some_queries), atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.01])
def test_a_mask_lets_only_its_rows_answer(share, opened, many, some_queries):
    allowed = np.random.default_rng(0).random(len(many)) < share
    ids = np.flatnonzero(allowed)
    found = exact_search(some_queries, [many[ids]], 20)
    truth = top_k(ids[found.ids], found.scores, 20)

    hits = opened.search(some_queries, 20, allowed)

    assert allowed[hits.ids].all()
    assert recall_at(hits, truth, 20).mean() > 0.9


def test_all_allowed_rows_come_back_where_they_are_few(opened, many, some_queries):
    allowed = np.zeros(len(many), dtype=bool)
    allowed[[3, 50_000, 99_999]] = True

    hits = opened.search(some_queries[:4], 5, allowed)

    np.testing.assert_array_equal(np.sort(hits.ids[:, :3], axis=1), np.tile([3, 50_000, 99_999], (4, 1)))
    assert (hits.ids[:, 3:] == PAD_ID).all()


def test_a_small_index_is_exact(vectors, queries, truth, tmp_path):
    index = VectorIndex.open(*build_scann(vectors, tmp_path))

    assert recall_at(index.search(queries, 20), truth, 20).mean() > 0.999


def test_the_same_rows_give_the_same_file(vectors, tmp_path):
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _, _, (shard,) = build_scann(vectors, tmp_path / name)
        digests.add(hashlib.sha256(shard.path.read_bytes()).hexdigest())

    assert len(digests) == 1


def test_a_damaged_shard_is_refused_by_name(vectors, tmp_path):
    plan, trained, shards = build_scann(vectors, tmp_path)
    shards[0].path.write_bytes(shards[0].path.read_bytes()[:5000])

    with pytest.raises(CorruptionError, match="shard is not a readable ScaNN index"):
        VectorIndex.open(plan, trained, shards)


def test_a_database_beyond_the_memory_budget_is_refused():
    with pytest.raises(ConfigError, match="too small for ScaNN"):
        plan_vectors(100_000_000, 512, SCANN)


def test_without_scann_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['scann'] = None\n"
        "from remembrandt.databases.vectors import VectorConfig, build_shard, plan_vectors\n"
        "import numpy as np, pathlib\n"
        "plan = plan_vectors(10, 4, VectorConfig(backend='scann'))\n"
        "try: build_shard(plan, pathlib.Path('t'), iter([np.ones((10, 4), 'f4')]), pathlib.Path('x'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (
        done.stdout == "ConfigError ScaNN is not installed: install remembrandt[scann], or use vectors.backend=faiss\n"
    )
