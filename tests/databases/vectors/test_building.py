import hashlib
import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import pytest

from remembrandt.databases.vectors import VectorConfig, build_shard, plan_vectors, train_index
from remembrandt.databases.vectors.clustering import train_centroids
from remembrandt.databases.vectors.runtime import threads
from remembrandt.errors import ConfigError, CorruptionError, StorageError

FACTORIES = ["Flat", "IVF64,SQfp16", "IVF64_HNSW16,SQ8", "OPQ8_32,IVF64,PQ8", "HNSW16,Flat"]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("factory", FACTORIES)
def test_threads_and_batches_do_not_change_a_single_byte(factory, vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory=factory))
    digests = []
    plan = replace(plan, train_rows=min(plan.train_rows, 2560))
    for count, cut in ((1, [8000]), (2, [1, 999, 4000, 7777])):
        folder = tmp_path / str(count)
        folder.mkdir()
        with threads(count):
            train_index(plan, vectors[: plan.train_rows], folder / "trained")
            build_shard(plan, folder / "trained", iter(np.split(vectors, cut)), folder / "shard")
        digests.append((digest(folder / "trained"), digest(folder / "shard")))

    assert digests[0] == digests[1]


def test_another_seed_trains_other_centroids(vectors, tmp_path):
    for seed in (0, 1):
        plan = plan_vectors(*vectors.shape, VectorConfig(factory="IVF64,Flat", seed=seed))
        train_index(plan, vectors[:4000], tmp_path / str(seed))

    assert digest(tmp_path / "0") != digest(tmp_path / "1")


def test_shards_do_not_carry_the_centroids(vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="IVF512,SQ8"))
    train_index(plan, vectors, tmp_path / "trained")
    build_shard(plan, tmp_path / "trained", iter([vectors[:10]]), tmp_path / "shard")

    centroids = 512 * 64 * 4
    assert (tmp_path / "trained").stat().st_size > centroids > (tmp_path / "shard").stat().st_size


def test_planned_sizes_are_those_of_the_files(vectors, index_files, tmp_path):
    for factory in ("IVF64,SQ8", "OPQ8_32,IVF64_HNSW32,PQ8", "HNSW32,Flat"):
        plan = plan_vectors(*vectors.shape, VectorConfig(factory=factory, shard_rows=3000, train_rows=2560))
        folder = tmp_path / factory
        folder.mkdir()
        trained, shards = index_files(plan, vectors, folder)
        size = sum(path.stat().st_size for path in [trained, *(s.path for s in shards)])
        assert size == pytest.approx(plan.disk_bytes, rel=0.1)


def test_k_means_finds_the_clusters_and_fills_empty_ones(make_clustered):
    vectors = make_clustered(4000, 32, 20, seed=3)
    copies = np.repeat(vectors[:5], 400, axis=0)

    centroids = train_centroids(vectors, 100, seed=0)
    few = train_centroids(copies, 50, seed=0)

    closeness = (vectors @ centroids.T).max(axis=1).mean()
    arbitrary = (vectors @ vectors[:100].T).max(axis=1).mean()
    assert closeness > arbitrary
    assert np.unique(centroids, axis=0).shape == (*np.unique(few, axis=0).shape[:0], 100, 32)
    assert np.unique(few, axis=0).shape == (50, 32)
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, rtol=1e-5)


def test_the_two_level_start_reaches_the_quality_of_plain_k_means(make_clustered, monkeypatch):
    vectors = make_clustered(6000, 32, 60, seed=4)
    plain = train_centroids(vectors, 256, seed=0)
    monkeypatch.setattr("remembrandt.databases.vectors.clustering.TWO_LEVEL_LISTS", 1)
    two_level = train_centroids(vectors, 256, seed=0)

    closeness = [(vectors @ centroids.T).max(axis=1).mean() for centroids in (plain, two_level)]
    assert two_level.shape == plain.shape
    assert closeness[1] > closeness[0] - 0.01


def test_too_small_a_sample_is_refused(vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="IVF64,Flat"))

    with pytest.raises(ConfigError, match="at least 64 vectors, and the sample has 10"):
        train_index(plan, vectors[:10], tmp_path / "trained")


def test_a_sample_of_another_size_is_refused(vectors, tmp_path):
    plan = plan_vectors(8000, 128, VectorConfig(factory="IVF64,Flat"))

    with pytest.raises(ConfigError, match="wants 128 dimensions"):
        train_index(plan, vectors, tmp_path / "trained")


def test_a_place_that_cannot_be_written_is_named_and_left_clean(vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="Flat"))
    target = tmp_path / "trained"
    target.mkdir()

    with pytest.raises(StorageError, match=f"cannot write {target}"):
        train_index(plan, vectors[:1], target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_damaged_trained_index_is_named(vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="Flat"))
    (tmp_path / "trained").write_bytes(b"IxFI and then nothing")

    with pytest.raises(CorruptionError, match="trained is not a readable FAISS index"):
        build_shard(plan, tmp_path / "trained", iter([vectors]), tmp_path / "shard")


def test_without_faiss_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from remembrandt.databases.vectors import VectorConfig, plan_vectors, train_index\n"
        "import numpy as np, pathlib\n"
        "plan = plan_vectors(10, 4, VectorConfig())\n"
        "try: train_index(plan, np.ones((10, 4), 'f4'), pathlib.Path('x'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == (
        "ConfigError FAISS is not installed: install remembrandt[cpu], "
        "or remembrandt[gpu] on a machine with an NVIDIA GPU\n"
    )


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="this machine has a GPU")
def test_insisting_on_a_gpu_where_there_is_none_is_refused(vectors, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="IVF64,Flat"))

    with pytest.raises(ConfigError, match=r"device is gpu and FAISS sees none"):
        train_index(plan, vectors, tmp_path / "trained", device="gpu")
