"""Exact scores and exact search, independent of batch and shard boundaries.

BLAS sums in an order that depends on the shapes of its operands, so that equal rows may get scores that differ in the
last bit. Here every score is summed in double precision and rounded once: equal rows score equally, and ties are
ordered by row id.

Letters in names: B queries, D embedding, M candidates, N rows, K results.
"""

from collections.abc import Callable, Iterable
from typing import Any

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
_TILE_QUERIES, _TILE_ROWS, _GROUP_ROWS = 64, 16_384, 16
_FEW_QUERIES = 4


def rescore(queries_BD: NDArray[np.float32], ids_BM: NDArray[np.int64], fetch: Fetch, k: int) -> Hits:
    """The best `k` of the candidates by exact cosine. Returns (B, k), padded where there are fewer."""
    step = max(1, _CHUNK_VALUES // max(1, ids_BM.shape[1] * queries_BD.shape[1]))
    starts = range(0, len(ids_BM), step)
    return stack_hits([_rescore(queries_BD[i : i + step], ids_BM[i : i + step], fetch, k) for i in starts])


def _rescore(queries_BD: NDArray[np.float32], ids_BM: NDArray[np.int64], fetch: Fetch, k: int) -> Hits:
    unique, inverse = np.unique(ids_BM, return_inverse=True)
    padded = int(len(unique) > 0 and unique[0] == PAD_ID)
    vectors_UD = np.zeros((len(unique), queries_BD.shape[1]), dtype=np.float32)
    if len(unique) > padded:
        vectors_UD[padded:] = fetch(unique[padded:])
    places_BM = inverse.reshape(ids_BM.shape)
    if ids_BM.shape[1] > 4 * (k + SLACK):
        rough = np.matmul(vectors_UD[places_BM], queries_BD[:, :, None])[:, :, 0]
        rough[ids_BM == PAD_ID] = -np.inf
        order = np.argpartition(-rough, [k - 1, k + SLACK], axis=1)[:, : k + SLACK + 1]
        kept = np.take_along_axis(rough, order, axis=1)
        if np.all((kept[:, -1] < kept[:, k - 1] - TIE_MARGIN) | np.isneginf(kept[:, -1])):
            ids_BM, places_BM = np.take_along_axis(ids_BM, order, axis=1), np.take_along_axis(places_BM, order, axis=1)
    scores = np.einsum("bmd,bd->bm", vectors_UD.astype(np.float64)[places_BM], queries_BD.astype(np.float64))
    return top_k(ids_BM, scores.astype(np.float32), k)


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
        found = rescore(queries, ids, vectors.__getitem__, k)
        shifted = Hits(np.where(found.ids == PAD_ID, PAD_ID, found.ids + first_id), found.scores)
        best = Hits.merge([best, shifted], k)
        first_id += len(vectors)
    return best


def search_rows(
    queries_BD: NDArray[np.float32], ids_N: NDArray[np.int64], vectors_ND: NDArray[np.floating], k: int
) -> Hits:
    """The true `k` best of a few rows."""
    scores = (queries_BD.astype(np.float64) @ vectors_ND.astype(np.float64, copy=False).T).astype(np.float32)
    return merge_candidates(np.broadcast_to(ids_N, scores.shape), scores, k)


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


def stack_hits(parts: list[Hits]) -> Hits:
    """Answers to successive runs of queries as one."""
    if len(parts) == 1:
        return parts[0]
    return Hits(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))


def search_flat(
    index: Any, vectors_ND: NDArray[np.float32] | None, queries_BD: NDArray[np.float32], m: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `m` best rows of an index that compares with all of them, the faster way.

    Args:
        vectors_ND: `flat_vectors` of the index.
    """
    if vectors_ND is not None and len(queries_BD) >= _FEW_QUERIES:
        return nearest(queries_BD, vectors_ND, m)
    scores, positions = index.search(queries_BD, m)
    return scores, positions


def nearest(
    queries_BD: NDArray[np.float32], vectors_ND: NDArray[np.float32], m: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `m` rows of highest inner product: scores and positions (B, m), best first, in float32 as BLAS sums it.

    A search gives each of its threads some of the queries, and BLAS one thread (`parallel_rows`).

    From four queries on it is up to five times as fast as FAISS's flat index, which compares row by row below 20 and
    keeps heaps above.
    """
    if not len(queries_BD):
        return np.empty((0, m), np.float32), np.empty((0, m), np.int64)
    starts = range(0, len(queries_BD), _TILE_QUERIES)
    found = [_nearest(queries_BD[i : i + _TILE_QUERIES], vectors_ND, m) for i in starts]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([positions for _, positions in found])


def _nearest(
    queries_BD: NDArray[np.float32], vectors_ND: NDArray[np.float32], m: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    parts = []
    for first in range(0, len(vectors_ND), _TILE_ROWS):
        # In this order BLAS takes half the time.
        scores, positions = _best(vectors_ND[first : first + _TILE_ROWS] @ queries_BD.T, m)
        parts.append((scores, positions + first))
    scores, positions = (np.concatenate(own, axis=1) for own in zip(*parts, strict=True))
    scores, positions = _upper(scores, positions, m)
    return _at(np.argsort(-scores, axis=1), scores, positions)


def _best(scores_NB: NDArray[np.float32], m: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `m` highest of each column and their rows, (B, M) in no order; all of them where there are fewer.

    They are among the `m` groups of rows that have the highest maxima, which are found without looking at one column
    at a time: several times as fast as to part all of a column.
    """
    rows, columns = scores_NB.shape
    groups = rows // _GROUP_ROWS
    if groups <= 2 * m:
        return _upper(scores_NB.T, np.broadcast_to(np.arange(rows), (columns, rows)), m)
    grouped = groups * _GROUP_ROWS
    highest = scores_NB[:grouped].reshape(_GROUP_ROWS, groups * columns).max(axis=0).reshape(groups, columns)
    chosen_BM = np.argpartition(np.ascontiguousarray(highest.T), -m, axis=1)[:, -m:]
    within = (chosen_BM[:, :, None] + np.arange(0, grouped, groups)).reshape(columns, -1)
    left = np.broadcast_to(np.arange(grouped, rows), (columns, rows - grouped))
    positions = np.concatenate([within, left], axis=1)
    return _upper(scores_NB[positions, np.arange(columns)[:, None]], positions, m)


def _upper(
    scores_BN: NDArray[np.float32], positions_BN: NDArray[np.int64], m: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if scores_BN.shape[1] <= m:
        return scores_BN, positions_BN
    return _at(np.argpartition(scores_BN, -m, axis=1)[:, -m:], scores_BN, positions_BN)


def _at(
    places_BM: NDArray[np.intp], scores_BN: NDArray[np.float32], positions_BN: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As `np.take_along_axis` of both, which takes three times as long to find out what is asked."""
    rows = np.arange(len(places_BM))[:, None]
    return scores_BN[rows, places_BM], positions_BN[rows, places_BM]


def _candidates(
    faiss: Any, queries_BD: NDArray[np.float32], vectors_ND: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Enough of the nearest rows that none outside them can tie with the k-th."""
    m = min(len(vectors_ND), k + SLACK)
    while True:
        scores, ids = faiss.knn(queries_BD, vectors_ND, m, metric=faiss.METRIC_INNER_PRODUCT)
        if m == len(vectors_ND) or np.all(scores[:, -1] < scores[:, k - 1] - TIE_MARGIN):
            return ids.astype(np.int64)
        m = min(len(vectors_ND), 4 * m)
