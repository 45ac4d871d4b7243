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
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.databases.manifest import VectorsInfo
from remembrandt.databases.vectors import ShardFile, VectorIndex, VectorPlan
from remembrandt.databases.vectors.exact import merge_candidates, rescore, search_rows
from remembrandt.databases.vectors.index import FEW_ROWS, FEW_SHARE, _Found
from remembrandt.databases.vectors.shards import Candidates, Effort, Mask, Probe, Selection


@dataclass(frozen=True)
class Look:
    """What one process finds in its shards.

    Attributes:
        ids: (B, M) row ids, best first, int32 where they fit (it is sent); PAD_ID where there are fewer.
        scores: (B, M) float32; exact cosines where the index holds vectors in full precision, else the index's own.
        left_out: (B,) float32, the best score that a row not among them may have.
    """

    ids: NDArray[np.integer]
    scores: NDArray[np.float32]
    left_out: NDArray[np.float32]


class ShardDatabase(Database):
    """A version of which only some shards are loaded."""

    def look(self, queries_BD: NDArray[np.float32], m: int, effort: Effort, where: Filter | None) -> Look:
        """The best `m` rows of each normalised query among these shards."""
        return self._looking.look(queries_BD, m, effort, self._mask(where) if where else None)

    def rescore(self, queries_BD: NDArray[np.float32], ids_BM: NDArray[np.integer], k: int) -> Hits:
        """The `k` best of candidates, which may be any rows, by exact cosine."""
        return rescore(queries_BD, ids_BM.astype(np.int64), self._embeddings.take_normalised, k)

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
        """The same open shards."""
        return cls(index.plan, index._trained, index._shards, index._fetch)

    def look(self, queries_BD: NDArray[np.float32], m: int, effort: Effort, allowed: NDArray[np.bool_] | None) -> Look:
        """One pass over these shards; `allowed` is a mask over all rows of the database."""
        queries = np.ascontiguousarray(queries_BD, dtype=np.float32)
        mask = self._mask(allowed) if allowed is not None else None
        if not (sum(mask.counts) if mask else self.rows):
            nothing = padding(len(queries), 0)
            return Look(nothing.ids, nothing.scores, np.full(len(queries), -np.inf, np.float32))
        vectors = self._trained.transform(queries) if self._trained else queries
        found = self._pass(vectors, m, effort, mask)
        hits = found.hits
        if self._factory.exact and not self.plan.rerank:
            hits = rescore(queries, hits.ids, self._stored, m)
        small = self.plan.rows <= np.iinfo(np.int32).max
        return Look(hits.ids.astype(np.int32 if small else np.int64), hits.scores, found.left_out)


@dataclass(frozen=True)
class LookQuestion:
    """What a search must know to go on: `ShardDatabase.look`, from every group of shards."""

    queries_BD: NDArray[np.float32]
    m: int
    effort: Effort


@dataclass(frozen=True)
class RescoreQuestion:
    """What a search must know to go on: `ShardDatabase.rescore` of the candidates, in any number of portions of M."""

    queries_BD: NDArray[np.float32]
    ids_BM: NDArray[np.int64]
    k: int


Question = LookQuestion | RescoreQuestion
Search = Generator[Question, list[Any], Hits]
"""Yields questions, takes the answers (looks of all groups; hits of all portions), returns hits."""


class RemoteIndex(VectorIndex):
    """The decisions of `VectorIndex` over shards that other processes have. It asks; others carry the questions.

    Args:
        info: plan and shards of the version.
    """

    def __init__(self, info: VectorsInfo) -> None:
        files = [_RemoteShard(ShardFile(Path(s.path), s.first_id, s.rows)) for s in info.shards]
        super().__init__(VectorPlan.from_json(info.plan), None, files, _no_fetch)
        self._answers: list[list[Any]] = []
        self._next = 0

    def queries_at_once(self, k: int, available: int) -> int:
        """How many queries one search should take."""
        return self._step(k, available)

    def is_few(self, available: int) -> bool:
        """Whether a filter allows so few rows that `ShardDatabase.search_few` is the way to search them."""
        return not self._factory.exact and available <= max(FEW_ROWS, FEW_SHARE * self.rows)

    def search_remotely(self, queries_BD: NDArray[np.float32], k: int, available: int) -> Search:
        """One search of normalised queries, of which `available` rows may be the answer.

        The search is deterministic, so it is begun anew with each answer: nearly always, one or two are enough.
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
        looks: list[Look] = self._answer(LookQuestion(np.ascontiguousarray(vectors_BD), m, effort))
        ids = np.concatenate([look.ids for look in looks], axis=1).astype(np.int64)
        scores = np.concatenate([look.scores for look in looks], axis=1)
        return _Found(merge_candidates(ids, scores, m), np.max([look.left_out for look in looks], axis=0))

    def _order(self, queries_BD: NDArray[np.float32], found: Hits, k: int, reranks: bool) -> Hits:
        if reranks:
            return Hits.merge(self._answer(RescoreQuestion(queries_BD, found.ids, k)), k)
        return merge_candidates(found.ids, found.scores, k)

    def _answer(self, question: Question) -> list[Any]:
        if self._next == len(self._answers):
            raise _UnansweredError(question)
        self._next += 1
        return self._answers[self._next - 1]


class _UnansweredError(Exception):
    """A search cannot go on without an answer that it did not get yet."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


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
    raise AssertionError("exact cosines are asked for")
