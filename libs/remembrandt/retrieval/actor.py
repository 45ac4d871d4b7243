"""The process that answers: one pinned database version, with some of its vector shards."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remembrandt.allocation import keep_freed_memory
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Check
from remembrandt.databases.hits import Filter, Hits, Where
from remembrandt.databases.manifest import MANIFEST, digest, encode_document
from remembrandt.databases.rows import Row
from remembrandt.databases.vectors.shards import Effort
from remembrandt.errors import VersionError
from remembrandt.retrieval.shards import Look, ShardDatabase


@dataclass(frozen=True)
class Pin:
    """The one version that a pool answers from, known by the digest of its manifest."""

    uri: str
    version: str
    manifest_sha256: str


class DatabaseActor:
    """Runs as a Ray actor. It opens the version at the first call, so that a restarted one says itself what is wrong.

    Args:
        shards: the vector shards to load; None: no vectors, only BM25 and rows.
        check_seconds: how old the last look at the version's manifest may be when a call comes in.
    """

    def __init__(self, pin: Pin, shards: tuple[int, ...] | None, check_seconds: float) -> None:
        keep_freed_memory()
        self._pin, self._shards, self._check_seconds = pin, shards, check_seconds
        self._lock = threading.Lock()
        self._opened: ShardDatabase | None = None
        self._looked = 0.0

    def open(self, verify: Check) -> int:
        """Opens the version if it is not open, and loads what this actor answers from; returns the process id.

        Raises:
            VersionError: the pinned version is gone, or another one stands in its place.
            CorruptionError: a damaged file, by name.
        """
        self._database(verify)
        return os.getpid()

    def search(self, queries_BD: NDArray[np.float32], k: int, where: Where) -> Hits:
        """`Database.search_embeddings`, where this actor has every shard."""
        return self._database().search_embeddings(queries_BD, k, where)

    def look(self, queries_BD: NDArray[np.float32], m: int, effort: Effort, where: Filter | None) -> Look:
        """`ShardDatabase.look`."""
        return self._database().look(queries_BD, m, effort, where)

    def rescore(self, queries_BD: NDArray[np.float32], ids_BM: NDArray[np.int64], k: int) -> Hits:
        """`ShardDatabase.rescore`."""
        return self._database().rescore(queries_BD, ids_BM, k)

    def count(self, where: Filter) -> int:
        """`ShardDatabase.count`."""
        return self._database().count(where)

    def search_few(self, queries_BD: NDArray[np.float32], k: int, where: Filter) -> Hits:
        """`ShardDatabase.search_few`."""
        return self._database().search_few(queries_BD, k, where)

    def search_bm25(self, texts: Sequence[str], k: int, where: Where) -> Hits:
        """`Database.search_bm25`."""
        return self._database().search_bm25(texts, k, where)

    def select(self, where: Filter | None) -> NDArray[np.int64]:
        """`Database.select`: of all rows, whatever shards this actor has."""
        return self._database().select(where)

    def embeddings(self, ids_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """`Database.embeddings`: of any row, whatever shards this actor has."""
        return self._database().embeddings(ids_N)

    def rows(self, ids_N: NDArray[np.int64], columns: Sequence[str] | None) -> list[Row]:
        """`Database.rows`: of any row."""
        return self._database().rows(ids_N, columns)

    def proposal(self) -> NDArray[np.float64]:
        """`Database.proposal`."""
        return self._database().proposal()

    def _database(self, verify: Check = "sizes") -> ShardDatabase:
        with self._lock:
            if self._opened is None:
                self._opened = self._open(verify)
                self._looked = time.monotonic()
            elif time.monotonic() - self._looked > self._check_seconds:
                if not Catalog.open(self._pin.uri).version_store(self._pin.version).exists(MANIFEST):
                    raise VersionError(f"version '{self._pin.version}' of {self._pin.uri} has disappeared: {_REMEDY}")
                self._looked = time.monotonic()
            return self._opened

    def _open(self, verify: Check) -> ShardDatabase:
        pin = self._pin
        database = ShardDatabase.open(pin.uri, version=pin.version, verify=verify, shards=self._shards or ())
        if digest(encode_document(database.manifest)) != pin.manifest_sha256:
            raise VersionError(
                f"version '{pin.version}' of {pin.uri} is not the one that this pool was started with: {_REMEDY}"
            )
        if self._shards:
            # Loads the index and the embedding column, which otherwise the first request would wait for.
            database.search_embeddings(database.embeddings([0]), 1)
        elif database.manifest.bm25 is not None:
            database.search_bm25(["warm"], 1)
        return database


_REMEDY = "restore it, or start a pool on another version"
