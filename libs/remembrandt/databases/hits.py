"""Answers of a search, and the filters that narrow one.

Shapes: B queries, K results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PAD_ID = -1


@dataclass(frozen=True)
class Hits:
    """The best rows of B queries, best first; equal scores are ordered by row id.

    Attributes:
        ids: (B, K) int64 row ids; PAD_ID where a query found fewer than K rows.
        scores: (B, K) float32, cosine similarity or BM25; -inf where padded.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def merge(parts: "list[Hits]", k: int) -> "Hits":
        """The best `k` of several answers to the same queries (disjoint shards)."""
        return top_k(
            np.concatenate([p.ids for p in parts], axis=1), np.concatenate([p.scores for p in parts], axis=1), k
        )


def top_k(ids_BN: NDArray[np.int64], scores_BN: NDArray[np.float32], k: int) -> Hits:
    """Keeps the `k` best of N candidates, ordered by (score descending, id ascending), padded to exactly `k`."""
    scores = np.where(ids_BN == PAD_ID, -np.inf, scores_BN).astype(np.float32)
    order = np.lexsort((ids_BN, -scores), axis=-1)[:, :k]
    ids, scores = np.take_along_axis(ids_BN, order, axis=1), np.take_along_axis(scores, order, axis=1)
    missing = k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=PAD_ID)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Hits(np.where(np.isneginf(scores), PAD_ID, ids).astype(np.int64), scores)


@dataclass(frozen=True)
class Filter:
    """Which rows may answer. Empty = all.

    Attributes:
        equals: column → allowed values, for `licence`, `group` and the source's own fields (style, artist, …);
            all columns must match.
        exclude_ids: row ids that may not answer.
        exclude_groups: groups (source images, entities) that may not answer.
        exclude_keys: row keys that may not answer.
    """

    equals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude_ids: tuple[int, ...] = ()
    exclude_groups: tuple[str, ...] = ()
    exclude_keys: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.equals.items())), self.exclude_ids, self.exclude_groups, self.exclude_keys))

    def __bool__(self) -> bool:
        return bool(self.equals or self.exclude_ids or self.exclude_groups or self.exclude_keys)


Where = Filter | Sequence[Filter | None] | None
"""One filter for all queries of a search, or one for each."""


def distinct_filters(filters: Sequence[Filter | None]) -> tuple[list[Filter | None], NDArray[np.intp]]:
    """The filters that there are, and which of them each query has (B,)."""
    numbers: dict[Filter | None, int] = {}
    # Most queries have the very filter of another, and to compare two takes longer than to see that they are one.
    known: dict[int, int] = {}
    which_B = np.empty(len(filters), np.intp)
    for place, own in enumerate(filters):
        number = known.get(id(own))
        if number is None:
            number = known[id(own)] = numbers.setdefault(own, len(numbers))
        which_B[place] = number
    return list(numbers), which_B


def search_each(
    filters: Sequence[Filter | None], k: int, search: Callable[[NDArray[np.intp], Filter | None], Hits]
) -> Hits:
    """Queries that share a filter are searched together: (their positions, the filter) → their hits."""
    ids = np.full((len(filters), k), PAD_ID, np.int64)
    scores = np.full((len(filters), k), -np.inf, np.float32)
    distinct, which_B = distinct_filters(filters)
    for number, own in enumerate(distinct):
        (places,) = np.nonzero(which_B == number)
        found = search(places, own)
        ids[places], scores[places] = found.ids, found.scores
    return Hits(ids, scores)
