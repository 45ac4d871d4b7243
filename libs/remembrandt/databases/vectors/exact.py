"""Exact scores and exact search, independent of batch and shard boundaries.

BLAS sums in an order that depends on the shapes of its operands, so that equal rows may get scores that differ in the
last bit. Here every score is summed in double precision and rounded once: equal rows score equally, and ties are
ordered by row id.

Letters in names: B queries, D embedding, M candidates, N rows, K results.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Hits, top_k
from remembrandt.databases.vectors.runtime import import_faiss

Fetch = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Row ids (N,) → their normalised embeddings (N, D)."""

TIE_MARGIN = 4e-6
"""More than twice the error of a float32 inner product of unit vectors."""
SLACK = 8
_CHUNK_VALUES = 1 << 22


def rescore(queries_BD: NDArray[np.float32], ids_BM: NDArray[np.int64], fetch: Fetch) -> Hits:
    """Exact cosines of candidate rows, best first; padding stays padding. Returns (B, M)."""
    parts = []
    step = max(1, _CHUNK_VALUES // max(1, ids_BM.shape[1] * queries_BD.shape[1]))
    for start in range(0, len(ids_BM), step):
        ids = ids_BM[start : start + step]
        unique, inverse = np.unique(ids, return_inverse=True)
        known = unique[unique != PAD_ID]
        vectors = np.zeros((len(unique), queries_BD.shape[1]), dtype=np.float64)
        if len(known):
            vectors[len(unique) - len(known) :] = fetch(known)
        scores = np.einsum(
            "bmd,bd->bm", vectors[inverse.reshape(ids.shape)], queries_BD[start : start + step].astype(np.float64)
        )
        parts.append(top_k(ids, scores.astype(np.float32), ids.shape[1]))
    return Hits(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))


def exact_search(
    queries_BD: NDArray[np.float32], batches: Iterable[NDArray[np.float32]], k: int, first_id: int = 0
) -> Hits:
    """The true `k` best rows of normalised embeddings that stream by; ids count up from `first_id`.

    Args:
        queries_BD: normalised queries (B, D).
        batches: normalised embeddings (n, D), in order of row id.
        k: results a query; padded where there are fewer rows.
        first_id: id of the first row.
    """
    faiss = import_faiss()
    queries = np.ascontiguousarray(queries_BD, dtype=np.float32)
    best = Hits(np.full((len(queries), k), PAD_ID, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    for batch in batches:
        vectors = np.ascontiguousarray(batch, dtype=np.float32)
        ids = _candidates(faiss, queries, vectors, k)
        found = rescore(queries, ids, lambda rows, vectors=vectors: vectors[rows])  # type: ignore[misc]
        shifted = Hits(np.where(found.ids == PAD_ID, PAD_ID, found.ids + first_id), found.scores)
        best = Hits.merge([best, shifted], k)
        first_id += len(vectors)
    return best


def search_rows(
    queries_BD: NDArray[np.float32], ids_N: NDArray[np.int64], vectors_ND: NDArray[np.float32], k: int
) -> Hits:
    """The true `k` best of a few rows."""
    scores = (queries_BD.astype(np.float64) @ vectors_ND.astype(np.float64).T).astype(np.float32)
    return top_k(np.broadcast_to(ids_N, scores.shape), scores, k)


def merge_candidates(ids_BN: NDArray[np.int64], scores_BN: NDArray[np.float32], k: int) -> Hits:
    """`top_k`, which sorts only the upper part where no tie crosses its border."""
    keep = 2 * k
    if ids_BN.shape[1] <= 2 * keep:
        return top_k(ids_BN, scores_BN, k)
    scores = np.where(ids_BN == PAD_ID, -np.inf, scores_BN)
    upper = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
    top = np.take_along_axis(scores, upper, axis=1)
    best = top_k(np.take_along_axis(ids_BN, upper, axis=1), top, k)
    if np.any((top.min(axis=1) == best.scores[:, -1]) & ~np.isneginf(best.scores[:, -1])):
        return top_k(ids_BN, scores_BN, k)
    return best


def _candidates(
    faiss: object, queries_BD: NDArray[np.float32], vectors_ND: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Enough of the nearest rows that none outside them can tie with the k-th."""
    m = min(len(vectors_ND), k + SLACK)
    while True:
        scores, ids = faiss.knn(queries_BD, vectors_ND, m, metric=faiss.METRIC_INNER_PRODUCT)  # type: ignore[attr-defined]
        if m == len(vectors_ND) or np.all(scores[:, -1] < scores[:, k - 1] - TIE_MARGIN):
            return ids.astype(np.int64)  # type: ignore[no-any-return]
        m = min(len(vectors_ND), 4 * m)
