"""Training the index once, and adding rows to it shard by shard, anywhere.

Everything is cut into fixed blocks that one thread works on, so that files do not depend on how many threads there are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.vectors.clustering import BLOCK, Assigner, train_centroids
from remembrandt.databases.vectors.config import Device, VectorPlan
from remembrandt.databases.vectors.factory import parse_factory
from remembrandt.databases.vectors.runtime import import_faiss, parallel_map, threads
from remembrandt.databases.vectors.scann import build_scann_shard
from remembrandt.databases.vectors.trained import TrainedIndex
from remembrandt.errors import ConfigError

OPQ_ITERATIONS = 8
OPQ_TRAIN_ROWS = 20_000
PQ_ITERATIONS = 10
CODE_TRAIN_ROWS = 20_000
EF_CONSTRUCTION = 100
ADD_ROWS = 4 * BLOCK


def train_index(plan: VectorPlan, sample_ND: NDArray[np.float32], target: Path, *, device: Device = "auto") -> None:
    """Trains on a sample of normalised embeddings and writes the empty index to `target`.

    The same plan and sample give the same file on the CPU, whatever the number of threads.

    Raises:
        ConfigError: fewer vectors than the factory needs, or the wrong size.
        StorageError: `target` cannot be written.
    """
    if plan.backend == "scann":
        target.write_text(f"{plan.factory} is trained with its rows\n", encoding="utf-8")
        return
    faiss = import_faiss()
    sample = np.ascontiguousarray(sample_ND, dtype=np.float32)
    factory = parse_factory(plan.factory)
    if sample.ndim != 2 or sample.shape[1] != plan.dim:
        raise ConfigError(f"the training sample has shape {sample.shape}, and the plan wants {plan.dim} dimensions")
    if len(sample) < factory.lists:
        raise ConfigError(
            f"'{plan.factory}' is trained on at least {factory.lists:,} vectors, and the sample has {len(sample):,}: "
            "raise vectors.train_rows or use fewer lists"
        )
    trained = TrainedIndex(faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT))
    with threads(1):
        for transform in trained.transforms:
            _train_transform(transform, sample, plan.seed)
            sample = _transformed(sample, transform)
    if trained.quantizer is not None:
        centroids_CD = train_centroids(sample, factory.lists, plan.seed, device)
        with threads(1):
            if factory.coarse_m:
                trained.quantizer.hnsw.efConstruction = EF_CONSTRUCTION
            trained.quantizer.add(centroids_CD)
    _train_codes(trained, sample, plan.seed)
    trained.write_trained(target)


def build_shard(
    plan: VectorPlan,
    trained: Path,
    batches: Iterator[NDArray[np.float32]],
    target: Path,
    *,
    device: Device = "auto",
) -> int:
    """Adds normalised embeddings to a copy of the trained index and writes the shard to `target`.

    The rows decide the file: not how they are cut in batches, nor the number of threads.

    Returns:
        Rows written.

    Raises:
        CorruptionError: the trained index cannot be read.
        StorageError: `target` cannot be written.
    """
    if plan.backend == "scann":
        return build_scann_shard(plan, batches, target)
    shard = TrainedIndex.load(trained)
    if shard.ivf is not None:
        set_breadth(shard.quantizer, plan.ef_search)
        assign = Assigner(shard.quantizer, device)
    for block_ND in _rebatch(batches, ADD_ROWS, plan.dim):
        vectors = block_ND
        for transform in shard.transforms:
            vectors = _transformed(vectors, transform)
        if shard.ivf is not None:
            _add_to_lists(shard.ivf, vectors, assign(vectors))
        else:
            with threads(1):
                shard.index.add(vectors)
    shard.write_shard(target)
    return int(shard.index.ntotal)


def _train_transform(transform: Any, sample_ND: NDArray[np.float32], seed: int) -> None:
    if hasattr(transform, "niter_pq"):
        transform.niter = transform.niter_pq_0 = OPQ_ITERATIONS
        code_book = import_faiss().ProductQuantizer(transform.d_out, transform.M, 8)
        code_book.cp.min_points_per_centroid = 1
        transform.pq = code_book
        sample_ND = _subsample(sample_ND, OPQ_TRAIN_ROWS, seed)
    transform.train(sample_ND)


def _train_codes(trained: TrainedIndex, sample_ND: NDArray[np.float32], seed: int) -> None:
    """Trains scalar or product quantisers; the centroids are there already.

    Polysemous codes, which the factory asks for and no search here uses, take ten times as long as the code book.
    """
    if hasattr(trained.index, "pq"):
        trained.index.do_polysemous_training = False
        trained.index.pq.cp.niter = PQ_ITERATIONS
        trained.index.pq.cp.min_points_per_centroid = 1
    with threads(1):
        trained.index.train(_subsample(sample_ND, CODE_TRAIN_ROWS, seed))


def _add_to_lists(ivf: Any, vectors_ND: NDArray[np.float32], lists_N: NDArray[np.int64]) -> None:
    faiss = import_faiss()
    vectors, lists = np.ascontiguousarray(vectors_ND), np.ascontiguousarray(lists_N, dtype=np.int64)
    ids = np.arange(ivf.ntotal, ivf.ntotal + len(vectors), dtype=np.int64)
    ivf.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(lists))


def set_breadth(quantizer: Any, ef_search: int) -> None:
    """How broadly a graph over the centroids is searched."""
    if hasattr(quantizer, "hnsw"):
        quantizer.hnsw.efSearch = ef_search


def _transformed(vectors_ND: NDArray[np.float32], transform: Any) -> NDArray[np.float32]:
    """What a linear transform of FAISS makes of rows, the same for a row wherever it stands.

    A product in float32 rounds by the shape of the matrix and, on some processors, by the place of the row in it. What
    one in float64 rounds is gone in float32.
    """
    to_array = import_faiss().vector_to_array
    matrix = to_array(transform.A).reshape(transform.d_out, transform.d_in).astype(np.float64)
    bias = to_array(transform.b) if transform.have_bias else 0.0

    def move(block_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        moved_ND: NDArray[np.float32] = (block_ND.astype(np.float64) @ matrix.T + bias).astype(np.float32)
        return moved_ND

    blocks = [vectors_ND[start : start + BLOCK] for start in range(0, len(vectors_ND), BLOCK)]
    return np.concatenate(parallel_map(move, blocks))


def _rebatch(batches: Iterator[NDArray[np.float32]], rows: int, dim: int) -> Iterator[NDArray[np.float32]]:
    """The same rows in pieces of exactly `rows` (the last one shorter)."""
    held: list[NDArray[np.float32]] = []
    for batch in batches:
        assert batch.ndim == 2 and batch.shape[1] == dim, f"batch {batch.shape}, index of {dim} dimensions"
        while len(batch):
            take = rows - sum(map(len, held))
            held.append(batch[:take])
            batch = batch[take:]
            if sum(map(len, held)) == rows:
                yield np.ascontiguousarray(np.concatenate(held), dtype=np.float32)
                held = []
    if held:
        yield np.ascontiguousarray(np.concatenate(held), dtype=np.float32)


def _subsample(sample_ND: NDArray[np.float32], rows: int, seed: int) -> NDArray[np.float32]:
    if len(sample_ND) <= rows:
        return sample_ND
    chosen = np.sort(np.random.default_rng(seed).choice(len(sample_ND), size=rows, replace=False))
    return np.ascontiguousarray(sample_ND[chosen])
