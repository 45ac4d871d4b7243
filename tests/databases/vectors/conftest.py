"""Clustered synthetic embeddings, and indexes built of them in any number of shards."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from remembrandt.databases.hits import Hits
from remembrandt.databases.vectors import (
    ShardFile,
    VectorConfig,
    VectorIndex,
    VectorPlan,
    build_shard,
    exact_search,
    plan_vectors,
    train_index,
)
from remembrandt.encoders.base import normalise

Builder = Callable[..., VectorIndex]
DIM = 64


def clustered(rows: int, dim: int, clusters: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors around random unit centres, with noise whose spectrum decays as (i + 1)^-0.6."""
    rng = np.random.default_rng(seed)
    centres = normalise(np.random.default_rng(99).standard_normal((clusters, dim), dtype=np.float32))
    spectrum = (np.arange(dim, dtype=np.float32) + 1) ** -0.6
    noise = rng.standard_normal((rows, dim), dtype=np.float32) * spectrum / np.linalg.norm(spectrum)
    return normalise(centres[rng.integers(0, clusters, rows)] + 0.7 * noise)


@pytest.fixture(scope="session")
def vectors() -> NDArray[np.float32]:
    """8,000 × 64, rows 4,000–4,099 being copies of row 17."""
    made = clustered(8000, DIM, 80, seed=1)
    made[4000:4100] = made[17]
    return made


@pytest.fixture(scope="session")
def queries() -> NDArray[np.float32]:
    """200 × 64 from the same distribution."""
    return clustered(200, DIM, 80, seed=2)


@pytest.fixture(scope="session")
def truth(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> Hits:
    """The exact 20 nearest rows."""
    return exact_search(queries, [vectors], 20)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """Builds and opens an index: `build(vectors, factory, shard_rows)`; the same one is built once a run."""
    opened: dict[tuple[int, str, int], VectorIndex] = {}

    def make(vectors_ND: NDArray[np.float32], factory: str, shard_rows: int, *, fetches: bool = False) -> VectorIndex:
        key = (id(vectors_ND), factory, shard_rows)
        if key not in opened:
            plan = plan_vectors(
                *vectors_ND.shape, VectorConfig(factory=factory, shard_rows=shard_rows, train_rows=2560)
            )
            opened[key] = build_index(plan, vectors_ND, tmp_path_factory.mktemp("index"))
        index = opened[key]
        return VectorIndex(index.plan, index._trained, index._shards, vectors_ND.__getitem__ if fetches else None)

    yield make
    for index in opened.values():
        index.close()


def build_index(plan: VectorPlan, vectors_ND: NDArray[np.float32], folder: Path, *, mmap: bool = True) -> VectorIndex:
    """Trains on a seeded sample, builds every shard, opens them all."""
    return VectorIndex.open(plan, *build_files(plan, vectors_ND, folder), mmap=mmap)


def build_files(plan: VectorPlan, vectors_ND: NDArray[np.float32], folder: Path) -> tuple[Path, list[ShardFile]]:
    """Trains on a seeded sample and builds every shard."""
    chosen = np.sort(np.random.default_rng(0).choice(plan.rows, size=plan.train_rows, replace=False))
    trained, shards = folder / "trained.faiss", []
    train_index(plan, vectors_ND[chosen], trained)
    for number in range(plan.num_shards):
        rows = vectors_ND[number * plan.shard_rows : (number + 1) * plan.shard_rows]
        path = folder / f"shard-{number:05d}.faiss"
        build_shard(plan, trained, iter([rows]), path)
        shards.append(ShardFile(path, number * plan.shard_rows, len(rows)))
    return trained, shards


@pytest.fixture
def index_files() -> Callable[..., tuple[Path, list[ShardFile]]]:
    return build_files


@pytest.fixture(scope="session")
def make_clustered() -> Callable[..., NDArray[np.float32]]:
    return clustered


@pytest.fixture
def probing() -> Callable[[VectorIndex, int], VectorIndex]:
    """The same index with another nprobe."""
    return lambda index, nprobe: index.with_plan(replace(index.plan, nprobe=nprobe))
