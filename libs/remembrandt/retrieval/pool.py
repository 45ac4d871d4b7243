"""Live retrieval: one pinned database version spread over Ray actors, searched as if it were open in this process.

Vector shards are dealt out to groups of actors; a query goes to one actor of every group and the answers are merged.
BM25 and rows have a group of their own. An actor that dies is restarted, and what it was asked is asked again.

Letters in names: B queries, K results, N rows, D embedding.
"""

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeVar

import numpy as np
import ray
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from remembrandt.configuration import Config, parse_config
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.hits import Filter, Hits, Where
from remembrandt.databases.manifest import Manifest, digest, encode_document
from remembrandt.databases.rows import Row
from remembrandt.distributed import connect, plain_error
from remembrandt.errors import SearchError, ServiceError
from remembrandt.progress import say
from remembrandt.retrieval.actor import Pin
from remembrandt.retrieval.fan_out import FanOut
from remembrandt.retrieval.members import Group, Member

ResultT = TypeVar("ResultT")


class PoolConfig(Config):
    """How a pool is spread and how patient it is. Nothing here changes an answer.

    Attributes:
        num_actors: groups that the vector shards are dealt out to; `auto`: one a node, at most one a shard.
        replicas: actors a group; any of them can answer for it.
        num_cpus, num_gpus, memory, resources: what Ray reserves for each actor (`memory` in bytes).
        concurrency: calls that one actor works on at once.
        max_in_flight: requests that are with the actors at once; more wait in order.
        max_queued: requests that may wait; the next one is refused at once.
        timeout_seconds: after which a request is given up, restarts of actors included.
        start_timeout_seconds: after which a start is given up.
        verify: what the first actor checks of the version's files (see `Database.open`); all others look at sizes.
        version_check_seconds: how often each actor looks whether the version is still there.
    """

    num_actors: int | Literal["auto"] = "auto"
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    memory: int | None = Field(None, ge=1)
    resources: dict[str, float] = Field(default_factory=dict)
    concurrency: int = Field(4, ge=1)
    max_in_flight: int = Field(64, ge=1)
    max_queued: int = Field(1024, ge=0)
    timeout_seconds: float = Field(60.0, gt=0)
    start_timeout_seconds: float = Field(300.0, gt=0)
    verify: Literal["files", "sizes"] = "files"
    version_check_seconds: float = Field(10.0, ge=0)

    def actor_options(self) -> dict[str, Any]:
        """Ray's options for each actor."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": self.memory,
            "resources": self.resources or None,
            "max_concurrency": self.concurrency,
            "scheduling_strategy": "SPREAD",
        }


class RetrievalPool:
    """A `Searcher` behind many processes. Thread-safe.

    Every method has a twin `submit_…` that returns a `concurrent.futures.Future` at once; with asyncio, wait for
    `asyncio.wrap_future` of it. Requests of one pool may be answered out of order; each future belongs to its request.

    A pickled pool, opened in another process of the same Ray job, asks the same actors. They live as long as the pool
    that started them.
    """

    def __init__(
        self, pin: Pin, manifest: Manifest, config: PoolConfig, deal: Sequence[tuple[int, ...]], token: str, owner: bool
    ) -> None:
        self.manifest = manifest
        self._pin, self._config, self._deal, self._token, self._owner = pin, config, tuple(deal), token, owner
        self._vectors = [self._group(n, shards) for n, shards in enumerate(self._deal)]
        self._texts = [self._group("bm25", None)] if manifest.bm25 is not None or not self._vectors else []
        self._any = Group("rows", [m for group in (self._vectors or self._texts) for m in group.members])
        self._fan_out = FanOut(manifest.vectors, self._vectors, self._any) if manifest.vectors else None
        self._unfinished, self._lock = 0, threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._thread = threading.Thread(target=self._loop.run_forever, name="retrieval-pool", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, uri: str, version: str | None = None, **options: Any) -> Self:
        """Starts the actors and returns when all are ready to answer.

        Args:
            uri: `<root>/<name>`, a path or `s3://…` that every node can read.
            version: its id; None for the version that is live now. The pool stays with it, whatever is published later.
            options: fields of `PoolConfig`.

        Raises:
            VersionError: no such database or version.
            CorruptionError: a damaged file, by name.
            ServiceError: the cluster has no room for the actors, or is not there.
            ConfigError: an unknown or impossible option.
        """
        config = parse_config(PoolConfig, options, "retrieval pool")
        catalog = Catalog.open(uri)
        manifest = catalog.live_manifest() if version is None else catalog.manifest(version)
        connect()
        pin = Pin(catalog.store.uri, manifest.version, digest(encode_document(manifest)))
        num_shards = len(manifest.vectors.shards) if manifest.vectors else 0
        pool = cls(
            pin,
            manifest,
            config,
            deal_shards(num_shards, _num_groups(config, num_shards)),
            uuid.uuid4().hex[:12],
            owner=True,
        )
        try:
            pool._run(pool._open_all())
        except BaseException:
            pool.close()
            raise
        return pool

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._pin, self.manifest, self._config, self._deal, self._token, False)

    @property
    def name(self) -> str:
        """The database's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Id of the pinned version."""
        return self.manifest.version

    @property
    def num_rows(self) -> int:
        """Number of rows N; ids run from 0 to N - 1."""
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """Embedding size D."""
        if self.manifest.dim is None:
            raise SearchError(f"database '{self.name}' holds texts only and has no embeddings: search it with BM25")
        return self.manifest.dim

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        """As `Database.search_embeddings`: the same ids and scores.

        Raises:
            SearchError: as there.
            ServiceError: no answer within `timeout_seconds`, or too many requests wait already.
            VersionError: the pinned version has disappeared.
        """
        return self.submit_search_embeddings(queries_BD, k, where).result()

    def search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Hits:
        """As `Database.search_bm25`."""
        return self.submit_search_bm25(texts, k, where).result()

    def select(self, where: Filter | None = None) -> NDArray[np.int64]:
        """As `Database.select`."""
        found: NDArray[np.int64] = self._submit(self._ask_one(self._any, "select", where)).result()
        return found

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]:
        """As `Database.embeddings`."""
        return self.submit_embeddings(ids).result()

    def rows(self, ids: ArrayLike, columns: Sequence[str] | None = None) -> list[Row]:
        """As `Database.rows`."""
        return self.submit_rows(ids, columns).result()

    def proposal(self) -> NDArray[np.float64]:
        """As `Database.proposal`."""
        found: NDArray[np.float64] = self._submit(self._ask_one(self._any, "proposal")).result()
        return found

    def submit_search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Future[Hits]:
        """`search_embeddings` without waiting."""
        if self._fan_out is None:
            raise SearchError(f"database '{self.name}' has no vector index: search it with BM25")
        queries = np.atleast_2d(np.asarray(queries_BD, dtype=np.float32))
        if queries.shape[1] != self.dim:
            raise SearchError(f"queries have {queries.shape[1]} dimensions, and database '{self.name}' has {self.dim}")
        if not 1 <= k <= self.num_rows:
            raise SearchError(
                f"k = {k} is not possible: database '{self.name}' has {self.num_rows:,} rows; ask for 1 to "
                f"{self.num_rows:,}"
            )
        return self._submit(self._fan_out.search(queries, k, where or None))

    def submit_search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Future[Hits]:
        """`search_bm25` without waiting."""
        (group,) = self._texts or [self._any]
        return self._submit(self._ask_one(group, "search_bm25", list(texts), k, where))

    def submit_embeddings(self, ids: ArrayLike) -> Future[NDArray[np.float32]]:
        """`embeddings` without waiting."""
        return self._submit(self._ask_one(self._any, "embeddings", np.asarray(ids, dtype=np.int64)))

    def submit_rows(self, ids: ArrayLike, columns: Sequence[str] | None = None) -> Future[list[Row]]:
        """`rows` without waiting."""
        return self._submit(self._ask_one(self._any, "rows", np.asarray(ids, dtype=np.int64), columns))

    def actors(self) -> dict[str, int]:
        """Process id of every actor by its name in Ray, once all are ready (those that restart are waited for)."""
        return self._run(self._open_all())

    def close(self) -> None:
        """Ends the actors (if this pool started them) and gives up what is still under way."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._owner and ray.is_initialized():
            for member in self._members():
                member.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _ask_one(self, group: Group, method: str, *arguments: Any) -> Any:
        return await group.ask(method, *arguments)

    async def _open_all(self) -> dict[str, int]:
        """Opens every actor: the first one checks the files, the others trust it."""
        first, *others = self._members()
        pids = {first.name: await first.open(self._config.verify)}
        async with asyncio.TaskGroup() as tasks:
            opened = {member.name: tasks.create_task(member.open("sizes")) for member in others}
        return pids | {name: task.result() for name, task in opened.items()}

    def _members(self) -> list[Member]:
        return [member for group in (*self._vectors, *self._texts) for member in group.members]

    def _group(self, name: int | str, shards: tuple[int, ...] | None) -> Group:
        stem = f"remembrandt-retrieval-{self._token}-{name}"
        arguments = (self._pin, shards, self._config.version_check_seconds)
        members = [Member(f"{stem}-{n}", arguments, self._config.actor_options()) for n in range(self._config.replicas)]
        label = f"shards {shards[0]} to {shards[-1]}" if shards else "BM25"
        return Group(label, members)

    def _submit(self, work: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        limit = self._config.max_in_flight + self._config.max_queued
        with self._lock:
            full = self._unfinished >= limit
            self._unfinished += 0 if full else 1
        if full:
            work.close()
            raise ServiceError(
                f"the retrieval pool of '{self.name}' has {limit:,} open requests: try later, or start more replicas"
            )
        return asyncio.run_coroutine_threadsafe(self._bounded(work), self._loop)

    async def _bounded(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        seconds = self._config.timeout_seconds
        try:
            async with asyncio.timeout(seconds), self._slots:
                return await work
        except TimeoutError:
            raise ServiceError(
                f"the retrieval pool of '{self.name}' gave no answer within {seconds:g} s ({self._state()}): "
                "look at its actors with `ray list actors`, or raise timeout_seconds"
            ) from None
        except BaseException as error:
            raise _single(error) from error
        finally:
            work.close()
            with self._lock:
                self._unfinished -= 1

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """For starting: without a slot, with the longer patience."""
        future = asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(work, self._config.start_timeout_seconds), self._loop
        )
        try:
            return future.result()
        except TimeoutError:
            raise ServiceError(
                f"{len(self._members())} retrieval actors with num_cpus={self._config.num_cpus:g} each were not ready "
                f"within {self._config.start_timeout_seconds:g} s ({self._state()}; free: {_free()}): "
                "lower num_actors, replicas or num_cpus, or add nodes"
            ) from None
        except BaseException as error:
            raise _single(error) from error

    def _state(self) -> str:
        groups = (*self._vectors, *self._texts)
        lost = [group.label for group in groups if not group.healthy]
        losses = [member.last_loss for group in groups for member in group.members if member.last_loss]
        said = f"no actor for {', '.join(lost)}" if lost else "no actor is known to be gone"
        return f"{said}; last loss: {losses[-1]}" if losses else said

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def deal_shards(num_shards: int, num_groups: int) -> list[tuple[int, ...]]:
    """Neighbouring shards to the same group, as evenly as possible."""
    return (
        [tuple(int(n) for n in part) for part in np.array_split(np.arange(num_shards), num_groups)]
        if num_shards
        else []
    )


def _num_groups(config: PoolConfig, num_shards: int) -> int:
    if config.num_actors == "auto":
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        return max(1, min(num_shards, nodes))
    if config.num_actors > max(num_shards, 1):
        say(f"retrieval pool: num_actors {config.num_actors} exceeds the {num_shards} vector shards, one actor a shard")
    return max(1, min(num_shards, config.num_actors))


def _free() -> str:
    found = ray.available_resources()
    return f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"


def _single(error: BaseException) -> BaseException:
    """The one failure that a person should see, out of a task group's bundle or Ray's wrapping."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return plain_error(error)
