"""Spherical k-means whose centroids do not depend on the number of threads.

Letters in names: N vectors, D size, C centroids.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.vectors.config import Device
from remembrandt.databases.vectors.runtime import GpuIndex, import_faiss, num_gpus, parallel_map
from remembrandt.encoders.base import normalise

BLOCK = 8192
ITERATIONS = 10
CONVERGED = 1e-3
"""Relative gain of an iteration below which it was the last."""
TWO_LEVEL_LISTS = 16_384
"""From this many centroids on, a clustering of clusters gives the start, and few iterations refine it."""
REFINEMENTS = 3


def train_centroids(
    sample_ND: NDArray[np.float32], num_centroids: int, seed: int, device: Device = "auto"
) -> NDArray[np.float32]:
    """Centroids of unit length (C, D) for inner-product search.

    Args:
        sample_ND: at least `num_centroids` training vectors.
        num_centroids: C.
        seed: of the initial choice and of how empty clusters are refilled.
        device: `auto` assigns on GPUs where FAISS sees them.
    """
    rng = np.random.default_rng(seed)
    if num_centroids < TWO_LEVEL_LISTS:
        start = np.sort(rng.choice(len(sample_ND), size=num_centroids, replace=False))
        return _lloyd(sample_ND, normalise(sample_ND[start]), ITERATIONS, rng, device)
    start_CD = _two_level_start(sample_ND, num_centroids, rng, device)
    return _lloyd(sample_ND, start_CD, REFINEMENTS, rng, device)


class Assigner:
    """Finds the nearest centroid of vectors, in fixed blocks; on a GPU by comparing with all centroids."""

    def __init__(self, quantizer: Any, device: Device = "cpu") -> None:
        self._quantizer, self._on_gpu = quantizer, bool(num_gpus(device))
        if self._on_gpu:
            self._quantizer = GpuIndex(all_centroids(quantizer), 0)

    def __call__(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, D) → number of the nearest centroid (N,)."""
        return self.nearest(vectors_ND)[0]

    def nearest(self, vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
        """(N, D) → number of the nearest centroid (N,), and the sum of the inner products with them."""
        blocks = [vectors_ND[start : start + BLOCK] for start in range(0, len(vectors_ND), BLOCK)]
        if self._on_gpu:
            found = [self._quantizer.search(block, 1) for block in blocks]
        else:
            found = parallel_map(lambda block: self._quantizer.search(block, 1), blocks)
        if not found:
            return np.empty(0, np.int64), 0.0
        return np.concatenate([ids[:, 0] for _, ids in found]), float(sum(s.sum(dtype=np.float64) for s, _ in found))


def all_centroids(quantizer: Any) -> Any:
    """The flat index of the centroids, behind a graph or not."""
    return import_faiss().downcast_index(quantizer.storage) if hasattr(quantizer, "hnsw") else quantizer


def _two_level_start(
    sample_ND: NDArray[np.float32], num_centroids: int, rng: np.random.Generator, device: Device
) -> NDArray[np.float32]:
    """Clusters each of √C coarse clusters separately: N·√C comparisons an iteration instead of N·C."""
    num_coarse = round(num_centroids**0.5)
    chosen = np.sort(rng.choice(len(sample_ND), size=min(len(sample_ND), 256 * num_coarse), replace=False))
    coarse_CD = _lloyd(sample_ND[chosen], normalise(sample_ND[chosen[:num_coarse]]), ITERATIONS, rng, device)
    coarse_N = Assigner(_flat(coarse_CD), device)(sample_ND)
    sizes = np.bincount(coarse_N, minlength=num_coarse)
    shares = np.diff(np.cumsum(sizes) * num_centroids // len(sample_ND), prepend=0)
    members = np.split(np.argsort(coarse_N, kind="stable"), np.cumsum(sizes)[:-1])
    parts = [
        _lloyd(sample_ND[m], normalise(sample_ND[rng.choice(m, size=share, replace=False)]), ITERATIONS, rng, "cpu")
        for m, share in zip(members, shares, strict=True)
        if share
    ]
    return np.concatenate(parts)


def _lloyd(
    sample_ND: NDArray[np.float32],
    centroids_CD: NDArray[np.float32],
    iterations: int,
    rng: np.random.Generator,
    device: Device,
) -> NDArray[np.float32]:
    before = -np.inf
    for _ in range(iterations):
        nearest_N, closeness = Assigner(_flat(centroids_CD), device).nearest(sample_ND)
        centroids_CD = _means(sample_ND, nearest_N, centroids_CD, rng)
        if closeness - before < CONVERGED * abs(closeness):
            break
        before = closeness
    return centroids_CD


def _means(
    sample_ND: NDArray[np.float32],
    nearest_N: NDArray[np.int64],
    before_CD: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Mean directions of the clusters; an empty one takes half of a large one."""
    count = len(before_CD)
    sizes = np.bincount(nearest_N, minlength=count)
    order = np.argsort(nearest_N, kind="stable")
    filled = np.flatnonzero(sizes)
    starts = (np.cumsum(sizes) - sizes)[filled]
    means_CD = before_CD.copy()
    means_CD[filled] = normalise(np.add.reduceat(sample_ND[order], starts, axis=0))
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        large = np.argsort(-sizes, kind="stable")[: len(empty)]
        shift = rng.standard_normal((len(empty), before_CD.shape[1]), dtype=np.float32) * np.float32(1e-3)
        means_CD[empty] = normalise(means_CD[large] + shift)
        means_CD[large] = normalise(means_CD[large] - shift)
    return means_CD


def _flat(centroids_CD: NDArray[np.float32]) -> Any:
    index = import_faiss().IndexFlatIP(centroids_CD.shape[1])
    index.add(centroids_CD)
    return index
