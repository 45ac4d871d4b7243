"""Where the service asks for what is retrieved. `LocalRetriever` is in this process; Ray Serve has replicas."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from remembrandt.allocation import keep_freed_memory
from remembrandt.errors import RemembrandtError
from remembrandt.generation.requests import DatabaseRef
from remembrandt.serving.coalescing import Coalescer
from remembrandt.serving.config import ServiceConfig
from remembrandt.serving.retrieval import DatabaseFacts, Found, ModelRequest, Query, Retrieval, Rows
from remembrandt.threads import compute_alone

ResultT = TypeVar("ResultT")
SEARCHES = 64
"""Queries of one call."""


class Retriever(Protocol):
    """Finds, searches and reads."""

    async def find(self, model: str, requests: Sequence[ModelRequest]) -> list[Found | RemembrandtError]:
        """As `Retrieval.find`."""

    async def search(self, query: Query) -> Rows:
        """As `Retrieval.search`, one query; those of other clients are searched with it."""

    async def rows(self, ref: DatabaseRef, ids: Sequence[int]) -> Rows:
        """As `Retrieval.rows`."""

    async def image(self, ref: DatabaseRef, row: int, size: int | None) -> bytes:
        """As `Retrieval.image`."""

    async def facts(self, ref: DatabaseRef) -> DatabaseFacts:
        """As `Retrieval.facts`."""


class LocalRetriever:
    """A `Retrieval` of this process, in threads.

    Args:
        alone: whether these compute without helpers, because another thread of the process draws.
    """

    def __init__(self, config: ServiceConfig, *, alone: bool = False) -> None:
        keep_freed_memory()
        self._retrieval = Retrieval(config)
        begin = compute_alone if alone else None
        self._threads = ThreadPoolExecutor(config.retrieval_threads, "retrieval", initializer=begin)
        self._searches = Coalescer(self._in_thread(self._retrieval.search), SEARCHES)
        self._shared = [DatabaseRef(uri=own.uri, where=own.where) for own in config.shared_databases.values()]

    def warm(self) -> None:
        """Opens the shared databases, so that the first request does not wait for them."""
        self._retrieval.warm(self._shared)

    async def find(self, model: str, requests: Sequence[ModelRequest]) -> list[Found | RemembrandtError]:
        """As the protocol says."""
        return await self._in_thread(self._retrieval.find)(model, requests)

    async def search(self, query: Query) -> Rows:
        """As the protocol says."""
        return plain(await self._searches.submit(query))

    async def search_each(self, queries: Sequence[Query]) -> list[Rows | RemembrandtError]:
        """The answers to queries, or what is wrong with one, together with those of other callers."""
        return await asyncio.gather(*(self._searches.submit(query) for query in queries))

    async def rows(self, ref: DatabaseRef, ids: Sequence[int]) -> Rows:
        """As the protocol says."""
        return await self._in_thread(self._retrieval.rows)(ref, ids)

    async def image(self, ref: DatabaseRef, row: int, size: int | None) -> bytes:
        """As the protocol says."""
        return await self._in_thread(self._retrieval.image)(ref, row, size)

    async def facts(self, ref: DatabaseRef) -> DatabaseFacts:
        """As the protocol says."""
        return await self._in_thread(self._retrieval.facts)(ref)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _in_thread(self, work: Callable[..., ResultT]) -> Callable[..., Awaitable[ResultT]]:
        async def run(*arguments: object) -> ResultT:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*arguments))

        return run


def plain(answer: ResultT | RemembrandtError) -> ResultT:
    """An answer; a mistake, which came as a value, is raised."""
    if isinstance(answer, RemembrandtError):
        raise answer
    return answer
