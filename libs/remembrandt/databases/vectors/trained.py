"""The trained, empty index that all shards share, and the shards that hold rows.

One file holds what training produced: the pre-transform, the centroids, the code books. A shard's file holds inverted
lists and code books without the centroids, so that a thousand shards do not carry a thousand copies of them.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.vectors.clustering import BLOCK, Assigner, train_centroids
from remembrandt.databases.vectors.config import Device, VectorPlan
from remembrandt.databases.vectors.factory import parse_factory
from remembrandt.databases.vectors.runtime import import_faiss, parallel_map, threads
from remembrandt.errors import ConfigError, CorruptionError, StorageError

OPQ_ITERATIONS = 8
OPQ_TRAIN_ROWS = 20_000
PQ_ITERATIONS = 10
ADD_ROWS = 4 * BLOCK


class TrainedIndex:
    """What training produced, taken apart.

    Attributes:
        transforms: pre-transforms, in order of application.
        index: the empty index behind them.
        ivf: the same, if it has inverted lists, else None.
        quantizer: the index over its centroids, else None.
    """

    def __init__(self, whole: Any) -> None:
        faiss = import_faiss()
        self._whole = whole
        self.transforms: list[Any] = []
        self.index = self._whole
        if isinstance(self._whole, faiss.IndexPreTransform):
            chain = self._whole.chain
            self.transforms = [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
            self.index = faiss.downcast_index(self._whole.index)
        self.ivf = self.index if isinstance(self.index, faiss.IndexIVF) else None
        self.quantizer = faiss.downcast_index(self.ivf.quantizer) if self.ivf is not None else None

    @classmethod
    def load(cls, path: Path) -> "TrainedIndex":
        """Reads what `train_index` wrote.

        Raises:
            CorruptionError: missing or unreadable.
        """
        return cls(read_index(path))

    def transform(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Applies the pre-transforms."""
        for transform in self.transforms:
            vectors_ND = transform.apply(vectors_ND)
        return vectors_ND

    def fits(self, shard: Any) -> bool:
        """Whether a shard's index can have come from this one."""
        if type(shard) is not type(self.index) or shard.d != self.index.d:
            return False
        return self.ivf is None or bool(shard.nlist == self.ivf.nlist)

    def write_trained(self, target: Path) -> None:
        """Writes the empty index."""
        write_index(self._whole, target)

    def write_shard(self, target: Path) -> None:
        """Writes the rows that were added, without pre-transform and centroids."""
        if self.ivf is None:
            write_index(self.index, target)
            return
        centroids, empty = self.ivf.quantizer, import_faiss().IndexFlatIP(self.ivf.d)
        self.ivf.quantizer = empty
        try:
            write_index(self.ivf, target)
        finally:
            self.ivf.quantizer = centroids


def train_index(plan: VectorPlan, sample_ND: NDArray[np.float32], target: Path, *, device: Device = "auto") -> None:
    """Trains on a sample of normalised embeddings and writes the empty index to `target`.

    The same plan and sample give the same file on the CPU, whatever the number of threads.

    Raises:
        ConfigError: fewer vectors than the factory needs, or the wrong size.
        StorageError: `target` cannot be written.
    """
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
            sample = np.concatenate(_blocks(sample, transform.apply))
    if trained.quantizer is not None:
        centroids_CD = train_centroids(sample, factory.lists, plan.seed, device)
        with threads(1):
            if factory.coarse_m:
                trained.quantizer.hnsw.efConstruction = 100
            trained.quantizer.add(centroids_CD)
    _train_codes(trained, sample)
    trained._whole.is_trained = True
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
    shard = TrainedIndex.load(trained)
    if shard.ivf is not None:
        set_breadth(shard.quantizer, plan.ef_search)
        assign = Assigner(shard.quantizer, device)
    for block_ND in _rebatch(batches, ADD_ROWS, plan.dim):
        vectors = np.concatenate(_blocks(block_ND, shard.transform)) if shard.transforms else block_ND
        if shard.ivf is not None:
            _add_to_lists(shard.ivf, vectors, assign(vectors))
        else:
            with threads(1):
                shard.index.add(vectors)
    shard.write_shard(target)
    return int(shard.index.ntotal)


def read_index(path: Path, flags: int = 0) -> Any:
    """Reads a FAISS file.

    Raises:
        CorruptionError: missing, truncated, or not a FAISS index.
    """
    try:
        return import_faiss().read_index(str(path), flags)
    except RuntimeError as error:
        message = f"{path} is not a readable FAISS index ({_reason(error)}): restore it or rebuild"
        raise CorruptionError(message) from None


def write_index(index: Any, target: Path) -> None:
    """Writes a FAISS file under a temporary name, then moves it into place.

    Raises:
        StorageError: no space, no permission, no such folder.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        import_faiss().write_index(index, str(temporary))
        os.replace(temporary, target)
    except (RuntimeError, OSError) as error:
        raise StorageError(f"cannot write {target} ({_reason(error)}): check space and permissions") from None
    finally:
        temporary.unlink(missing_ok=True)


def _train_transform(transform: Any, sample_ND: NDArray[np.float32], seed: int) -> None:
    if hasattr(transform, "niter_pq"):
        transform.niter = transform.niter_pq_0 = OPQ_ITERATIONS
        sample_ND = _subsample(sample_ND, OPQ_TRAIN_ROWS, seed)
    transform.train(sample_ND)


def _train_codes(trained: TrainedIndex, sample_ND: NDArray[np.float32]) -> None:
    """Trains scalar or product quantisers; the centroids are there already."""
    if hasattr(trained.index, "pq"):
        trained.index.pq.cp.niter = PQ_ITERATIONS
    with threads(1):
        trained.index.train(_subsample(sample_ND, 65_536, 0))


def _add_to_lists(ivf: Any, vectors_ND: NDArray[np.float32], lists_N: NDArray[np.int64]) -> None:
    faiss = import_faiss()
    vectors, lists = np.ascontiguousarray(vectors_ND), np.ascontiguousarray(lists_N, dtype=np.int64)
    ids = np.arange(ivf.ntotal, ivf.ntotal + len(vectors), dtype=np.int64)
    ivf.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(lists))


def set_breadth(quantizer: Any, ef_search: int) -> None:
    """How broadly a graph over the centroids is searched."""
    if hasattr(quantizer, "hnsw"):
        quantizer.hnsw.efSearch = ef_search


def _blocks(vectors_ND: NDArray[np.float32], function: Any) -> list[NDArray[np.float32]]:
    return parallel_map(function, [vectors_ND[start : start + BLOCK] for start in range(0, len(vectors_ND), BLOCK)])


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


def _reason(error: Exception) -> str:
    """The last clause of a FAISS error, without its source position, on one line."""
    text = " ".join(str(error).split())
    return text.rsplit("Error: ", 1)[-1][:160]
