"""Searching shards that lie in several processes exactly as one index over all of them would.

An approximate index decides how hard to search from what all shards together return, so merging finished answers of
each process would not give the same. Instead the search runs where the query is (`RemoteIndex`), and the processes that
have the shards (`ShardDatabase`) look into them: one look finds the best M candidates of each query with one effort.

Letters in names: B queries, D embedding, K results, M candidates, N rows.
"""

from collections.abc import Generator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits, top_k
from remembrandt.databases.manifest import VectorsInfo
from remembrandt.databases.vectors import ShardFile, VectorIndex, VectorPlan
from remembrandt.databases.vectors.exact import merge_candidates, rescore, search_rows
from remembrandt.databases.vectors.index import FEW_ROWS, FEW_SHARE, _Found
from remembrandt.databases.vectors.shards import Candidates, Effort, Mask, Probe, Selection


@dataclass(frozen=True)
class Look:
    """What one process finds in its shards.

    Attributes:
        ids: (B, M) int64 row ids, best first by the index's own scores; PAD_ID where there are fewer.
        scores: (B, M) float32, those scores.
        exact: (B, M) float32 exact cosines of the same rows, or None where the index's scores are final.
        left_out: (B,) float32, the best score that a row not among them may have.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    exact: NDArray[np.float32] | None
    left_out: NDArray[np.float32]


class ShardDatabase(Database):
    """A version of which only some shards are loaded."""

    def look(self, queries_BD: NDArray[np.float32], m: int, effort: Effort, where: Filter | None) -> Look:
        """The best `m` rows of each normalised query among these shards."""
        return self._looking.look(queries_BD, m, effort, self._mask(where) if where else None)

    def count(self, where: Filter) -> int:
        """How many of all N rows a filter allows."""
        return int(np.count_nonzero(self._mask(where)))

    def search_few(self, queries_BD: NDArray[np.float32], k: int, where: Filter) -> Hits:
        """The `k` best of the few rows of the whole database that a filter allows, by exact cosine."""
        ids = np.flatnonzero(self._mask(where))
        return search_rows(queries_BD, ids, self._embeddings.take_normalised(ids), k)

    @cached_property
    def _looking(self) -> "LookingIndex":
        return LookingIndex.of(self._index)


class LookingIndex(VectorIndex):
    """Does one pass of a search and leaves the decisions to whoever asked."""

    @classmethod
    def of(cls, index: VectorIndex) -> Self:
        return cls(index.plan, index._trained, index._shards, index._fetch)

    def look(self, queries_BD: NDArray[np.float32], m: int, effort: Effort, allowed: NDArray[np.bool_] | None) -> Look:
        queries = np.ascontiguousarray(queries_BD, dtype=np.float32)
        mask = self._mask(allowed) if allowed is not None else None
        if not (sum(mask.counts) if mask else self.rows):
            empty = np.empty((len(queries), 0), np.float32)
            return Look(empty.astype(np.int64), empty, empty, np.full(len(queries), -np.inf, np.float32))
        vectors = self._trained.transform(queries) if self._trained else queries
        found = self._pass(vectors, m, effort, mask)
        ids, scores = found.hits.ids, found.hits.scores
        return Look(ids, scores, self._exact(queries, ids), found.left_out)

    def _exact(self, queries_BD: NDArray[np.float32], ids_BM: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Exact cosines of candidates, in the order of the candidates."""
        if not (self._factory.exact or self.plan.rerank):
            return None
        fetch = self._fetch if self.plan.rerank and self._fetch else self._stored
        ranked = rescore(queries_BD, ids_BM, fetch, ids_BM.shape[1])
        exact_BM = np.empty(ids_BM.shape, np.float32)
        by_id = np.take_along_axis(ranked.scores, np.argsort(ranked.ids, axis=1, kind="stable"), axis=1)
        np.put_along_axis(exact_BM, np.argsort(ids_BM, axis=1, kind="stable"), by_id, axis=1)
        return exact_BM


@dataclass(frozen=True)
class Question:
    """What a search must know to go on: a call of `ShardDatabase.look`, to be answered for all shards."""

    queries_BD: NDArray[np.float32]
    m: int
    effort: Effort


Search = Generator[Question, list[Look], Hits]
"""Yields questions, takes the looks of all groups of shards, returns hits."""


class RemoteIndex(VectorIndex):
    """The decisions of `VectorIndex` over shards that other processes have. It asks; others carry the questions.

    Args:
        info: plan and shards of the version.
    """

    def __init__(self, info: VectorsInfo) -> None:
        files = [_RemoteShard(ShardFile(Path(s.path), s.first_id, s.rows)) for s in info.shards]
        super().__init__(VectorPlan.from_json(info.plan), None, files, _no_fetch)
        self._answers: list[list[Look]] = []
        self._next = 0

    def queries_at_once(self, k: int, available: int) -> int:
        """How many queries one search should take."""
        return self._step(k, available)

    def is_few(self, available: int) -> bool:
        """Whether a filter allows so few rows that `ShardDatabase.search_few` is the way to search them."""
        return not self._factory.exact and available <= max(FEW_ROWS, FEW_SHARE * self.rows)

    def search_remotely(self, queries_BD: NDArray[np.float32], k: int, available: int) -> Search:
        """One search of normalised queries, of which `available` rows may be the answer.

        The search is deterministic, so it is begun anew with each answer: nearly always, one is enough.
        """
        index = copy(self)
        index._answers = []
        while True:
            index._next = 0
            try:
                return index._search(queries_BD, k, None, available)
            except _UnansweredError as unanswered:
                index._answers.append((yield unanswered.question))

    def _pass(self, vectors_BD: NDArray[np.float32], m: int, effort: Effort, mask: Mask | None) -> _Found:
        if self._next == len(self._answers):
            raise _UnansweredError(Question(np.ascontiguousarray(vectors_BD), m, effort))
        looks = self._answers[self._next]
        self._next += 1
        ids = np.concatenate([look.ids for look in looks], axis=1)
        scores = np.concatenate([look.scores for look in looks], axis=1)
        hits = merge_candidates(ids, scores, m)
        parts = [look.exact for look in looks if look.exact is not None]
        if parts:
            last_ids, last_scores = hits.ids[:, -1:], hits.scores[:, -1:]
            among = (scores > last_scores) | ((scores == last_scores) & (ids <= last_ids))
            among |= last_ids == PAD_ID
            hits = _Exact(hits.ids, hits.scores, Hits(np.where(among, ids, PAD_ID), np.concatenate(parts, axis=1)))
        return _Found(hits, np.max([look.left_out for look in looks], axis=0))

    def _order(self, queries_BD: NDArray[np.float32], found: Hits, k: int, reranks: bool) -> Hits:
        if isinstance(found, _Exact):
            return top_k(found.exact.ids, found.exact.scores, k)
        return merge_candidates(found.ids, found.scores, k)


class _UnansweredError(Exception):
    """A search cannot go on without looks that were not made yet."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


@dataclass(frozen=True)
class _Exact(Hits):
    """The best M candidates by the index's scores, and the same rows, in any order, with exact cosines."""

    exact: Hits


@dataclass
class _RemoteShard:
    """Stands for a shard that is elsewhere: only its extent is known here."""

    file: ShardFile

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        raise AssertionError("a shard in another process is looked into by `RemoteIndex` alone")


def padding(count: int, k: int) -> Hits:
    """The answer to `count` queries for which there is no row."""
    return Hits(np.full((count, k), PAD_ID, np.int64), np.full((count, k), -np.inf, np.float32))


def _no_fetch(ids_N: NDArray[np.int64]) -> NDArray[np.float32]:
    raise AssertionError("exact cosines come with the candidates")
