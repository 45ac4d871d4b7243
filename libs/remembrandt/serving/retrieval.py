"""What the retrieval deployment does: databases of all tenants, opened, searched and read. It knows no tenant."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remembrandt.data.decode import decode_image
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.encoders.base import ImageTextEncoder
from remembrandt.errors import RemembrandtError, SearchError
from remembrandt.generation.cascade import (
    CascadeRequest,
    PairContext,
    PairFinder,
    record_of,
    stage_folders,
    text_encoder_of,
)
from remembrandt.generation.contexts import ContextFinder, FoundContext, read_image
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.records import NeighborRecord, Record, to_png
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.models.folders import read_facts
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.sampling import KIND
from remembrandt.progress import say
from remembrandt.retrieval.registry import (
    ClassPoolStrategy,
    ExemplarsStrategy,
    PseudoQueryStrategy,
    StrategyConfig,
    TextAndNeighborsStrategy,
)
from remembrandt.serving.config import ModelConfig, ServiceConfig
from remembrandt.serving.metrics import cache_used, timed

ModelRequest = PictureRequest | CascadeRequest
ModelContext = FoundContext | PairContext
ResultT = TypeVar("ResultT")
_LIVE_SECONDS = 0.25


@dataclass(frozen=True)
class Found:
    """What a picture is conditioned on, and the record that it will carry."""

    context: ModelContext
    record: Record


@dataclass(frozen=True)
class Query:
    """A search. Exactly one of the five is given."""

    database: DatabaseRef
    k: int
    text: str | None = None
    image: bytes | None = None
    bm25: str | None = None
    row: int | None = None
    embedding: tuple[float, ...] | None = None

    @property
    def kind(self) -> str:
        """Which one is given."""
        kinds = ("text", "image", "bm25", "row", "embedding")
        return next(name for name in kinds if getattr(self, name) is not None)

    @property
    def group(self) -> tuple[Any, ...]:
        """Queries of equal group are one search. Embeddings of two lengths are no matrix, so theirs is a part of it."""
        length = None if self.embedding is None else len(self.embedding)
        return self.database.key, self.database.filter, self.kind, self.k, length


@dataclass(frozen=True)
class Rows:
    """Rows of one version."""

    database: str
    version: str
    rows: tuple[NeighborRecord, ...]


@dataclass(frozen=True)
class DatabaseFacts:
    """What a version's manifest says of it."""

    version: str
    rows: int
    bytes: int
    fields: tuple[str, ...]
    bm25: bool
    vectors: bool
    encoder: str | None


class Finder(Protocol):
    """Finds what pictures of one model are conditioned on."""

    def find(self, requests: Sequence[Any]) -> list[Found]: ...


class Retrieval:
    """Finds, searches and reads. Thread-safe."""

    def __init__(self, config: ServiceConfig) -> None:
        self._databases = OpenDatabases(self._open, config.database_cache_bytes)
        self._finders = {name: _finder(name, model, self._databases) for name, model in config.models.items()}
        self._encoders: dict[Any, ImageTextEncoder] = {}
        self._live: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._counted = (0, 0)

    def find(self, model: str, requests: Sequence[ModelRequest]) -> list[Found | RemembrandtError]:
        """The context of each picture; what is wrong with one request does not hurt the others.

        Versions that are not named are those that are live now, the same for the whole call.
        """
        finder = self._finders[model]
        pinned = [self._pinned(request) for request in requests]
        return _each(pinned, lambda group: finder.find([self._as_asked_here(request) for request in group]))

    def search(self, queries: Sequence[Query]) -> list[Rows | RemembrandtError]:
        """Answers to each query: texts and images are encoded together, and equal filters searched together."""
        pinned = [self._pinned(query) for query in queries]
        groups: dict[Any, list[int]] = defaultdict(list)
        for place, query in enumerate(pinned):
            if not isinstance(query, RemembrandtError):
                groups[query.group].append(place)
        answers: list[Rows | RemembrandtError | None] = [
            query if isinstance(query, RemembrandtError) else None for query in pinned
        ]
        for places in groups.values():
            found = _each([pinned[place] for place in places], self._search)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def rows(self, ref: DatabaseRef, ids: Sequence[int]) -> Rows:
        """Rows by id.

        Raises:
            SearchError: an id that is no row, or none of the part that `ref` names.
        """
        database = self._databases[self._resolve(ref)]
        check_rows_allowed(database, ref.filter, ids)
        return Rows(database.name, database.version, tuple(_records(database, list(ids), None)))

    def image(self, ref: DatabaseRef, row: int, size: int | None) -> bytes:
        """The picture of a row as PNG, made anew, so that nothing but pixels leaves; `size`: its longer edge at most.

        Raises:
            SearchError: no such row, or one without a picture.
        """
        database = self._databases[self._resolve(ref)]
        check_rows_allowed(database, ref.filter, [row])
        (found,) = database.rows([row], ["image"])
        if found.image is None:
            raise SearchError(f"row {row} has no image")
        image = decode_image(found.image)
        if size is not None and max(image.size) > size:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        return to_png(image)

    def facts(self, ref: DatabaseRef) -> DatabaseFacts:
        """What a version holds; of a part, how many rows it has.

        Raises:
            VersionError: nothing is published there.
        """
        pinned = self._resolve(ref)
        database = self._databases[pinned]
        manifest = database.manifest
        return DatabaseFacts(
            manifest.version,
            manifest.rows if ref.filter is None else len(database.select(ref.filter)),
            manifest.total_bytes,
            tuple(manifest.fields),
            manifest.bm25 is not None,
            manifest.vectors is not None,
            None if manifest.fingerprint is None else str(manifest.fingerprint),
        )

    def warm(self, refs: Sequence[DatabaseRef]) -> None:
        """Opens databases, and loads what their first search would wait for; one that is missing may come later."""
        for ref in refs:
            try:
                database = self._databases[self._resolve(ref)]
                if database.manifest.vectors is not None:
                    database.search_embeddings(database.embeddings([0]), 1)
                if database.manifest.config.get("encoder") is not None:
                    self._encoder(database).encode_texts(["a picture"])
            except RemembrandtError as error:
                say(f"{ref.uri} cannot be searched yet: {error}")

    def forget(self, uri: str) -> None:
        """The live version of a database may have changed."""
        with self._lock:
            self._live.pop(uri, None)

    def _search(self, queries: Sequence[Query]) -> list[Rows]:
        first = queries[0]
        database, where = self._databases[first.database], first.database.filter
        k = min(first.k, database.num_rows)
        vectors = None
        if first.kind in ("text", "image"):
            with timed("encode"):
                encoder = self._encoder(database)
                vectors = (
                    encoder.encode_texts([query.text or "" for query in queries])
                    if first.kind == "text"
                    else encoder.encode_images([read_image(query.image or b"") for query in queries])
                )
        elif first.kind == "embedding":
            vectors = np.asarray([query.embedding for query in queries], dtype=np.float32)
        with timed("search"):
            if vectors is not None:
                hits = database.search_embeddings(vectors, k, where)
            elif first.kind == "bm25":
                hits = database.search_bm25([query.bm25 or "" for query in queries], k, where)
            else:
                k = min(k, database.num_rows - 1)
                hits = database.search_ids([query.row or 0 for query in queries], k, where)
        with timed("read"):
            return _answers(database, hits)

    def _as_asked_here(self, request: ModelRequest) -> ModelRequest:
        """A request in terms of its database: exemplars encoded, and no more neighbours than there are rows."""
        if request.database is None:
            return request
        database = self._databases[request.database]
        if isinstance(request, CascadeRequest):
            return request.model_copy(update={"num_neighbors": min(request.num_neighbors, database.num_rows)})
        own = self._with_exemplars(request)
        return own.model_copy(update={"strategy": fitted(own.strategy, database)})

    def _with_exemplars(self, request: PictureRequest) -> PictureRequest:
        """Rows and pictures that a request brings as exemplars, the pictures encoded."""
        if not isinstance(request, ServedPicture) or request.database is None:
            return request
        rows, pictures = request.exemplar_rows, [read_image(data) for data in request.exemplar_images]
        if not rows and not pictures:
            return request
        database = self._databases[request.database]
        found = self._encoder(database).encode_images(pictures).tolist() if pictures else []
        strategy = ExemplarsStrategy(ids=rows, embeddings=tuple(map(tuple, found)))
        return request.model_copy(update={"strategy": strategy, "exemplar_rows": (), "exemplar_images": ()})

    def _encoder(self, database: Database) -> ImageTextEncoder:
        """One a fingerprint, shared by all databases that were embedded with it."""
        fingerprint = database.manifest.fingerprint
        with self._lock:
            if fingerprint not in self._encoders:
                self._encoders[fingerprint] = database.encoder
            return self._encoders[fingerprint]

    def _open(self, ref: DatabaseRef) -> Database:
        database = ServedDatabase.open(ref.uri, version=ref.version)
        encoder = self._encoders.get(database.manifest.fingerprint)
        if encoder is None:
            return database
        return ServedDatabase.open(ref.uri, version=ref.version, encoder=encoder)

    def _pinned(self, asked: Any) -> Any:
        """A request or query with its database's version named, or what is wrong with that."""
        if asked.database is None:
            return asked
        try:
            pinned = self._resolve(asked.database)
        except RemembrandtError as error:
            return error
        if isinstance(asked, Query):
            return replace(asked, database=pinned)
        return asked.model_copy(update={"database": pinned})

    def _resolve(self, ref: DatabaseRef) -> DatabaseRef:
        if ref.version is not None:
            return ref
        with self._lock:
            known = self._live.get(ref.uri)
        if known is None or time.monotonic() - known[0] > _LIVE_SECONDS:
            known = (time.monotonic(), Catalog.open(ref.uri).current())
            with self._lock:
                self._live[ref.uri] = known
            hits, misses = self._databases.hits, self._databases.misses
            cache_used("databases", hits - self._counted[0], misses - self._counted[1])
            self._counted = (hits, misses)
        return ref.model_copy(update={"version": known[1]})


class ServedDatabase(Database):
    """A database that pictures can be drawn from without a prompt, whether or not it was built with a train set."""

    def proposal(self) -> NDArray[np.float64]:
        """p_D (N,); where no train set says how likely a row is, all are equally likely."""
        if self.manifest.neighbors is None:
            return np.full(self.num_rows, 1 / self.num_rows)
        return super().proposal()


class ServedPicture(PictureRequest):
    """A picture that may be painted after rows, and pictures that the client sends."""

    exemplar_rows: tuple[int, ...] = ()
    exemplar_images: tuple[bytes, ...] = ()


class _RdmFinder:
    def __init__(self, name: str, folder: str, databases: OpenDatabases) -> None:
        found = ContextFinder.of_model(folder, databases)
        self._finder = ContextFinder(name, found.config, found.facts, databases)

    def find(self, requests: Sequence[PictureRequest]) -> list[Found]:
        with timed("search"):
            return [Found(context, context.record) for context in self._finder.find(requests)]


class _CascadeFinder:
    def __init__(self, name: str, folder: str, databases: OpenDatabases) -> None:
        facts = [read_facts(path, KIND) for path in stage_folders(folder)]
        configs = [StageConfig.model_validate(own["model"]) for own in facts]
        self._name = name
        self._sizes = [config.size for config in configs]
        self._edges = [config.neighbor_edge for config in configs]
        self._finder = PairFinder(text_encoder_of(facts[0]), databases)

    def find(self, requests: Sequence[CascadeRequest]) -> list[Found]:
        with timed("search"):
            contexts = self._finder.find(requests, self._edges)
            return [
                Found(context, record_of(self._name, self._sizes, request, context, self._finder))
                for request, context in zip(requests, contexts, strict=True)
            ]


def _finder(name: str, model: ModelConfig, databases: OpenDatabases) -> Finder:
    return (_RdmFinder if model.kind == "rdm" else _CascadeFinder)(name, model.model, databases)


def fitted(strategy: StrategyConfig, database: Database) -> StrategyConfig:
    """A strategy that asks for no more rows than a database has, as a search does not.

    Where all rows are equally likely, none of them are the most likely ones: then pseudo-queries are drawn from all.
    """
    rows = database.num_rows
    changes: dict[str, float] = {}
    if (count := getattr(strategy, "num_neighbors", 0)) > rows:
        changes["num_neighbors"] = rows
    if isinstance(strategy, ClassPoolStrategy) and strategy.pool_size > rows:
        changes["pool_size"] = rows
    if isinstance(strategy, TextAndNeighborsStrategy) and count > rows:
        changes["num_neighbors"] = min(count, rows + 1)  # the text is none of the rows
    if isinstance(strategy, PseudoQueryStrategy) and database.manifest.neighbors is None:
        changes["top_m"] = 1.0
    return strategy.model_copy(update=changes) if changes else strategy


def check_rows_allowed(database: Database, where: Filter | None, ids: Sequence[int]) -> None:
    """Rows outside a view do not exist.

    Raises:
        SearchError: one of them is not allowed.
    """
    if where is not None and len(ids) and not np.isin(np.asarray(ids), database.select(where)).all():
        raise SearchError(f"there is no row {ids[0]}" if len(ids) == 1 else "there is no such row")


def _each(asked: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[ResultT]]) -> list[ResultT | RemembrandtError]:
    """All together; if that fails, one by one, so that each has its own answer."""
    good = [one for one in asked if not isinstance(one, RemembrandtError)]
    answers: dict[int, ResultT | RemembrandtError] = {}
    try:
        answers = dict(enumerate(work(good))) if good else {}
    except RemembrandtError as error:
        if len(good) == 1:
            answers = {0: error}
        else:
            for place, one in enumerate(good):
                try:
                    (answers[place],) = work([one])
                except RemembrandtError as own:
                    answers[place] = own
    left = iter(range(len(good)))
    return [one if isinstance(one, RemembrandtError) else answers[next(left)] for one in asked]


def _answers(database: Database, hits: Hits) -> list[Rows]:
    """All rows of all queries, read at once."""
    there = hits.ids != PAD_ID
    records = iter(_records(database, hits.ids[there].tolist(), hits.scores[there].tolist()))
    return [Rows(database.name, database.version, tuple(next(records) for _ in range(int(own.sum())))) for own in there]


def _records(database: Database, ids: list[int], scores: list[float] | None) -> list[NeighborRecord]:
    if not ids:
        return []
    rows = database.rows(ids, ["key", "caption", "licence", *database.manifest.fields])
    return [
        NeighborRecord(
            row.id,
            None if scores is None else round(scores[place], 6),
            row.key,
            row.caption,
            row.licence,
            dict(row.fields),
        )
        for place, row in enumerate(rows)
    ]
