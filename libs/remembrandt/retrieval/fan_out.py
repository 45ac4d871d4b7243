"""Vector search over groups of actors: questions out to a member of every group, looks back. Runs in the pool's loop.

Letters in names: B queries, D embedding, K results, N rows.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from remembrandt.databases.hits import Filter, Hits, Where, search_each
from remembrandt.databases.manifest import VectorsInfo
from remembrandt.databases.vectors.exact import stack_hits
from remembrandt.encoders.base import normalise
from remembrandt.retrieval.members import Group
from remembrandt.retrieval.shards import LookQuestion, RemoteIndex, Search, padding

ResultT = TypeVar("ResultT")

_INLINE_BYTES = 100_000
_COUNTS_KEPT = 256


class FanOut:
    """Searches the shards of all groups as one index.

    Args:
        info: plan and shards of the version.
        groups: together they have every shard once.
        anyone: for questions that any actor can answer.
    """

    def __init__(self, info: VectorsInfo, groups: Sequence[Group], anyone: Group) -> None:
        self._index, self._groups, self._anyone = RemoteIndex(info), groups, anyone
        self._counts: dict[Filter, int] = {}

    async def search(self, queries_BD: NDArray[np.float32], k: int, where: Where) -> Hits:
        """As `Database.search_embeddings`, of queries of any norm."""
        if len(self._groups) == 1:
            hits: Hits = await self._groups[0].ask("search", queries_BD, k, where)
            return hits
        if not isinstance(where, Filter | None):
            return await self._search_each(queries_BD, k, where)
        queries_BD = normalise(queries_BD)
        available = self._index.rows if where is None else await self._count(where)
        if not len(queries_BD) or not available:
            return padding(len(queries_BD), k)
        if where is not None and self._index.is_few(available):
            few: Hits = await self._anyone.ask("search_few", queries_BD, k, where)
            return few
        step = self._index.queries_at_once(k, available)
        runs = [queries_BD[i : i + step] for i in range(0, len(queries_BD), step)]
        searches = [self._carry(self._index.search_remotely(run_BD, k, available), where) for run_BD in runs]
        return stack_hits(await gather(searches))

    async def _search_each(self, queries_BD: NDArray[np.float32], k: int, filters: Sequence[Filter | None]) -> Hits:
        distinct = list(dict.fromkeys(filters))
        places = [[place for place, own in enumerate(filters) if own == one] for one in distinct]
        searches = [self.search(queries_BD[own], k, one) for one, own in zip(distinct, places, strict=True)]
        found = dict(zip(distinct, await gather(searches), strict=True))
        return search_each(filters, k, lambda _, own: found[own])

    async def _carry(self, search: Search, where: Filter | None) -> Hits:
        """Carries the questions of one search to the groups, and the answers back."""
        question = next(search)
        while True:
            queries = self._sent(question.queries_BD)
            if isinstance(question, LookQuestion):
                asked = [group.ask("look", queries, question.m, question.effort, where) for group in self._groups]
            else:
                portions = np.array_split(question.ids_BM, min(len(self._groups), question.ids_BM.shape[1]), axis=1)
                asked = [
                    group.ask("rescore", queries, ids_BM, question.k)
                    for group, ids_BM in zip(self._groups, portions, strict=False)
                ]
            try:
                question = search.send(await gather(asked))
            except StopIteration as end:
                hits: Hits = end.value
                return hits

    def _sent(self, queries_BD: NDArray[np.float32]) -> Any:
        """What Ray does not send inline it would store once a group: large queries are stored once for all."""
        large = queries_BD.nbytes > _INLINE_BYTES and len(self._groups) > 1
        return ray.put(queries_BD) if large else queries_BD

    async def _count(self, where: Filter) -> int:
        """How many rows a filter allows; a version never changes, so it is asked once."""
        if where not in self._counts:
            count: int = await self._anyone.ask("count", where)
            while len(self._counts) >= _COUNTS_KEPT:
                self._counts.pop(next(iter(self._counts)))
            self._counts[where] = count
        return self._counts[where]


async def gather(work: Sequence[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """All results in order; the first failure ends the others."""
    if len(work) == 1:
        return [await work[0]]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(coroutine) for coroutine in work]
    return [task.result() for task in running]
