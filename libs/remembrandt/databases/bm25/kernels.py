"""The inner loops of the embedded index, compiled by Numba without the interpreter lock.

Letters: B queries, K results, N documents, P postings, Q terms of all queries together, V terms of the index.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_SLACK = 1.000001  # bounds are compared in float64 and scores end in float32
_LEAST = 1e-30  # a score of exactly zero marks a document that no term has reached
_LOOKUP_STEPS = 20  # a binary search costs about as much as reading this many postings in order


def _compiled(function: FunctionT) -> FunctionT:
    """Compiles at the first call; the machine code is kept on disk where some folder is writable."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    return cast(FunctionT, compiled)


@_compiled
def _share(weight: np.float32, count: np.uint16, factor: np.float32) -> np.float32:
    """Part of a term's weight that a document earns, rounded after every step as Lucene does."""
    return weight - weight / np.float32(np.float32(1) + np.float32(count) * factor)


@_compiled
def scatter_postings(
    document_ends_N: NDArray[np.int64],
    terms_P: NDArray[np.int32],
    counts_P: NDArray[np.uint16],
    rank_V: NDArray[np.int32],
    cursors_V: NDArray[np.int64],
    documents_out_P: NDArray[np.int32],
    counts_out_P: NDArray[np.uint16],
) -> None:
    """Turns postings in document order into postings in term order (a counting sort).

    Args:
        document_ends_N: where the postings of each document end.
        rank_V: final number of each term.
        cursors_V: where the postings of each final term start; moved to where they end.
    """
    position = 0
    for document in range(len(document_ends_N)):
        while position < document_ends_N[document]:
            rank = rank_V[terms_P[position]]
            target = cursors_V[rank]
            documents_out_P[target] = document
            counts_out_P[target] = counts_P[position]
            cursors_V[rank] = target + 1
            position += 1


@_compiled
def peak_saturations(
    offsets_V1: NDArray[np.int64],
    documents_P: NDArray[np.int32],
    counts_P: NDArray[np.uint16],
    lengths_N: NDArray[np.uint8],
    factors_256: NDArray[np.float32],
    peaks_V: NDArray[np.float32],
) -> None:
    """The largest share of a term's weight that any document reaches: the bound that lets search skip documents."""
    one = np.float32(1)
    for term in range(len(peaks_V)):
        peak = np.float32(0)
        for position in range(offsets_V1[term], offsets_V1[term + 1]):
            peak = max(peak, _share(one, counts_P[position], factors_256[lengths_N[documents_P[position]]]))
        peaks_V[term] = peak


@_compiled
def search_batch(
    query_offsets_B1: NDArray[np.int64],
    terms_Q: NDArray[np.int64],
    weights_Q: NDArray[np.float32],
    offsets_V1: NDArray[np.int64],
    documents_P: NDArray[np.int32],
    counts_P: NDArray[np.uint16],
    peaks_V: NDArray[np.float32],
    lengths_N: NDArray[np.uint8],
    factors_256: NDArray[np.float32],
    allowed_N: NDArray[np.bool_],
    scores_N: NDArray[np.float64],
    touched_N: NDArray[np.int32],
    positions_BK: NDArray[np.int64],
    best_BK: NDArray[np.float32],
) -> None:
    """Exact top K of each query, by score and then by position (MaxScore, term at a time).

    Terms are read from the most valuable on. Once the K-th best score so far exceeds what all unread terms together
    could add, no new document can enter, and the rest is looked up for the documents at hand only. (Turtle and Flood,
    Query Evaluation: Strategies and Optimizations, 1995.)

    Args:
        allowed_N: documents that may answer; an empty array allows all.
        scores_N: zeros; zeros again on return.
        touched_N: scratch.
        positions_BK, best_BK: filled with −1 and −inf; receive the answer.
    """
    k = positions_BK.shape[1]
    heap_scores = np.empty(k, np.float64)
    heap_positions = np.empty(k, np.int64)
    for query in range(len(query_offsets_B1) - 1):
        first, stop = query_offsets_B1[query], query_offsets_B1[query + 1]
        terms, weights = terms_Q[first:stop], weights_Q[first:stop]
        bounds = weights.astype(np.float64)
        for i in range(len(terms)):
            bounds[i] *= peaks_V[terms[i]]
        order = np.argsort(-bounds, kind="mergesort")
        unread = bounds.sum()
        threshold = 0.0
        touched = 0
        step = 0
        while step < len(order) and unread * _SLACK >= threshold:
            i = order[step]
            start, end = offsets_V1[terms[i]], offsets_V1[terms[i] + 1]
            touched = _add_all(
                start, end, weights[i],
                documents_P, counts_P, lengths_N, factors_256, allowed_N, scores_N, touched_N, touched,
            )  # fmt: skip
            unread -= bounds[i]
            step += 1
            if step < len(order):
                following = terms[order[step]]
                if (offsets_V1[following + 1] - offsets_V1[following]) * 4 > touched:
                    threshold = _kth_best(scores_N, touched_N, touched, heap_scores)
        if step < len(order):
            touched = _drop_hopeless(scores_N, touched_N, touched, unread, threshold)
        while step < len(order):
            i = order[step]
            start, end = offsets_V1[terms[i]], offsets_V1[terms[i] + 1]
            _add_to_touched(
                start, end, weights[i], documents_P, counts_P, lengths_N, factors_256, scores_N, touched_N, touched
            )
            unread -= bounds[i]
            step += 1
            if touched > 4 * k:
                threshold = _kth_best(scores_N, touched_N, touched, heap_scores)
                touched = _drop_hopeless(scores_N, touched_N, touched, unread, threshold)
        _take_best(scores_N, touched_N, touched, heap_scores, heap_positions, positions_BK[query], best_BK[query])


@_compiled
def _add_all(
    start: int,
    end: int,
    weight: np.float32,
    documents_P: NDArray[Any],
    counts_P: NDArray[Any],
    lengths_N: NDArray[Any],
    factors_256: NDArray[Any],
    allowed_N: NDArray[Any],
    scores_N: NDArray[Any],
    touched_N: NDArray[Any],
    touched: int,
) -> int:
    for position in range(start, end):
        document = documents_P[position]
        if scores_N[document] == 0.0:
            if len(allowed_N) and not allowed_N[document]:
                continue
            touched_N[touched] = document
            touched += 1
        share = _share(weight, counts_P[position], factors_256[lengths_N[document]])
        scores_N[document] += max(share, _LEAST)
    return touched


@_compiled
def _add_to_touched(
    start: int,
    end: int,
    weight: np.float32,
    documents_P: NDArray[Any],
    counts_P: NDArray[Any],
    lengths_N: NDArray[Any],
    factors_256: NDArray[Any],
    scores_N: NDArray[Any],
    touched_N: NDArray[Any],
    touched: int,
) -> None:
    if touched * _LOOKUP_STEPS > end - start:
        for position in range(start, end):
            document = documents_P[position]
            if scores_N[document] != 0.0:
                scores_N[document] += _share(weight, counts_P[position], factors_256[lengths_N[document]])
        return
    for i in range(touched):
        document = touched_N[i]
        low, high = start, end
        while low < high:
            middle = (low + high) >> 1
            if documents_P[middle] < document:
                low = middle + 1
            else:
                high = middle
        if low < end and documents_P[low] == document:
            scores_N[document] += _share(weight, counts_P[low], factors_256[lengths_N[document]])


@_compiled
def _drop_hopeless(
    scores_N: NDArray[Any],
    touched_N: NDArray[Any],
    touched: int,
    unread: float,
    threshold: float,
) -> int:
    kept = 0
    for i in range(touched):
        document = touched_N[i]
        if (scores_N[document] + unread) * _SLACK >= threshold:
            touched_N[kept] = document
            kept += 1
        else:
            scores_N[document] = 0.0
    return kept


@_compiled
def _kth_best(
    scores_N: NDArray[Any],
    touched_N: NDArray[Any],
    touched: int,
    heap: NDArray[Any],
) -> float:
    """The K-th best score, 0 if fewer than K documents are at hand; `heap` keeps the smallest at its root."""
    k = len(heap)
    if touched < k:
        return 0.0
    heap[:] = 0.0
    for i in range(touched):
        score = scores_N[touched_N[i]]
        if score <= heap[0]:
            continue
        node = 0
        while True:
            child = 2 * node + 1
            if child >= k:
                break
            if child + 1 < k and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= score:
                break
            heap[node] = heap[child]
            node = child
        heap[node] = score
    return float(heap[0])


@_compiled
def _take_best(
    scores_N: NDArray[Any],
    touched_N: NDArray[Any],
    touched: int,
    heap_scores: NDArray[Any],
    heap_positions: NDArray[Any],
    positions_K: NDArray[Any],
    best_K: NDArray[Any],
) -> None:
    """Writes the best documents in order and clears the scores. The worst of those kept stands at the heap's root."""
    k = len(heap_scores)
    size = 0
    for i in range(touched):
        document = np.int64(touched_N[i])
        score = np.float64(np.float32(scores_N[document]))
        scores_N[document] = 0.0
        if size < k:
            node = size
            size += 1
            while node > 0:
                parent = (node - 1) >> 1
                if not _worse(score, document, heap_scores[parent], heap_positions[parent]):
                    break
                heap_scores[node], heap_positions[node] = heap_scores[parent], heap_positions[parent]
                node = parent
            heap_scores[node], heap_positions[node] = score, document
        elif _worse(heap_scores[0], heap_positions[0], score, document):
            _sift_down(heap_scores, heap_positions, size, score, document)
    while size > 0:
        size -= 1
        positions_K[size], best_K[size] = heap_positions[0], heap_scores[0]
        _sift_down(heap_scores, heap_positions, size, heap_scores[size], heap_positions[size])


@_compiled
def _worse(
    score: float,
    document: Any,
    other_score: float,
    other_document: Any,
) -> bool:
    return score < other_score or (score == other_score and document > other_document)


@_compiled
def _sift_down(
    heap_scores: NDArray[Any],
    heap_positions: NDArray[Any],
    size: int,
    score: float,
    document: Any,
) -> None:
    """Puts an entry in place of the root of a heap of `size` entries."""
    node = 0
    while True:
        child = 2 * node + 1
        if child >= size:
            break
        if child + 1 < size and _worse(
            heap_scores[child + 1], heap_positions[child + 1], heap_scores[child], heap_positions[child]
        ):
            child += 1
        if not _worse(heap_scores[child], heap_positions[child], score, document):
            break
        heap_scores[node], heap_positions[node] = heap_scores[child], heap_positions[child]
        node = child
    if size > 0:
        heap_scores[node], heap_positions[node] = score, document
