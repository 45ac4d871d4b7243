"""FAISS itself: whether it is installed, how many threads it uses, and its GPUs."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from remembrandt.databases.vectors.config import Device
from remembrandt.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")
_QUERIES_PER_THREAD = 16


def import_faiss() -> ModuleType:
    """The `faiss` module, imported on first use.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError:
        raise ConfigError(
            "FAISS is not installed: install remembrandt[cpu], or remembrandt[gpu] on a machine with an NVIDIA GPU"
        ) from None


def num_threads() -> int:
    """Threads that FAISS may use here (OMP_NUM_THREADS, else all cores)."""
    return int(import_faiss().omp_get_max_threads())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Limits FAISS to `count` threads for calls from the current thread."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def parallel_map(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Applies `function` to every item, many at a time, each on one FAISS thread.

    FAISS's own threads split matrix products by their number, which changes the last bits of the results. Cutting the
    work in fixed pieces and giving each piece one thread makes results independent of the number of threads.
    """
    faiss = import_faiss()
    workers = min(num_threads(), len(items))
    if workers <= 1:
        with threads(1):
            return [function(item) for item in items]
    with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))


def parallel_rows(function: Callable[[NDArray[Any]], R], queries_B: NDArray[Any]) -> list[R]:
    """Applies `function` to queries, or their places, cut in as many runs as there are threads; few stay in one.

    FAISS's own threads wait actively for each other, which on a busy machine costs a single query tens of milliseconds.
    """
    workers = min(num_threads(), len(queries_B) // _QUERIES_PER_THREAD)
    if workers <= 1:
        with threads(1), one_blas_thread():
            return [function(queries_B)]
    with one_blas_thread():
        return list(_search_pool(num_threads(), os.getpid()).map(function, np.array_split(queries_B, workers)))


@cache
def _search_pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Kept for the life of the process (a fork has none): starting threads takes longer than a search."""
    return ThreadPoolExecutor(workers, "vectors", initializer=import_faiss().omp_set_num_threads, initargs=(1,))


def num_gpus(device: Device) -> int:
    """How many GPUs FAISS shall use: 0 for the CPU.

    Raises:
        ConfigError: `gpu` is asked for and FAISS sees none.
    """
    if device == "cpu":
        return 0
    found = int(import_faiss().get_num_gpus())
    if device == "gpu" and not found:
        raise ConfigError(
            "vectors.device is gpu and FAISS sees none here: install remembrandt[gpu] where one is, or use auto"
        )
    return found


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it numpy's BLAS computes on the caller's thread alone, and so do the threads that it waits for.

    BLAS's own threads wait actively for more work after each product, on cores that the caller's next step needs.
    threadpoolctl lets the first thread that sets this decide for its process, as long as it lives; for others it stays
    as it is.
    """
    with _blas().limit(limits=1):
        yield


@cache
def _blas() -> ThreadpoolController:
    # One that uses OpenMP counts for each thread apart, and FAISS's, which does, is told by `threads`.
    return ThreadpoolController().select(threading_layer=["pthreads", "intel", "tbb"])


def flat_vectors(index: Any) -> NDArray[np.float32] | None:
    """The rows (N, D) where they lie, if an index holds them in full precision and compares by inner product."""
    faiss = import_faiss()
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.ntotal:
        return None
    values: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return values.reshape(index.ntotal, index.d)


class GpuIndex:
    """A copy of an index on a GPU; an HNSW coarse quantizer stays on the CPU.

    All copies on one GPU share its scratch memory, so that only one of them searches at a time.
    """

    LIMIT = 2048
    """Most results and most lists of one search."""

    def __init__(self, index: Any, number: int) -> None:
        faiss = import_faiss()
        resources, self._lock = _gpu_resources(number, os.getpid())
        options = faiss.GpuClonerOptions()
        options.allowCpuCoarseQuantizer = True
        with self._lock:
            self._index = faiss.index_cpu_to_gpu(resources, number, index, options)

    def search(
        self, queries_BD: NDArray[np.float32], m: int, params: Any | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions (B, M) of the best `m` rows."""
        with self._lock:
            scores, positions = self._index.search(queries_BD, m, params=params)
        return scores, positions


@cache
def _gpu_resources(number: int, process: int) -> tuple[Any, threading.Lock]:
    return import_faiss().StandardGpuResources(), threading.Lock()
