"""Neighbours of training examples: asked from live retrieval actors, or precomputed. Both give the same, bit for bit.

Letters in names: B examples, K neighbours, D embedding, N examples in all.
"""

from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from remembrandt.configuration import Config
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.databases.manifest import digest, encode_document
from remembrandt.databases.neighbor_dataset import Neighbors, Similarity
from remembrandt.databases.neighbor_search import ExclusionConfig, Identities, NeighborFinder, QueryBatch, SameConfig
from remembrandt.errors import ConfigError, EncoderMismatchError, VersionError
from remembrandt.retrieval import RetrievalPool
from remembrandt.training.feeds.train_set import RowsConfig, TrainSet, describe


class NeighborsConfig(Config):
    """Where an example's neighbours come from: ξ_k(x, D) of P1 §3.2.

    Attributes:
        database: D; `where` narrows it.
        mode: `live` asks a pool of retrieval actors during training; `precomputed` reads what
            jobs/precompute_neighbors.py wrote for the same train set, database and exclusions.
        precomputed: its place.
        similarity: `clip` compares images; `bm25` the example's caption with captions (P2 §3.2).
        num_neighbors: k_train.
        exclude: what is never a neighbour of an example.
        same: a column that neighbours share with their example, for all or for a share of the examples: from
            neighbours of one style the model learns to take the style, from those of many the thing.
        remember: live: ask for each example once, since the pinned version answers the same in every later epoch. It
            takes 8·k bytes an example in each worker; answers of more than 1 GiB are not remembered.
        pool: how the live pool is spread (fields of `PoolConfig`).
    """

    database: RowsConfig
    mode: Literal["live", "precomputed"] = "live"
    precomputed: str | None = None
    similarity: Similarity = "clip"
    num_neighbors: int = Field(4, ge=1)
    exclude: ExclusionConfig = ExclusionConfig()
    same: SameConfig | None = None
    remember: bool = True
    pool: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> "NeighborsConfig":
        if (self.precomputed is not None) != (self.mode == "precomputed"):
            raise ValueError("mode precomputed needs `precomputed`, the place of the neighbours, and live has none")
        return self


class NeighborSource(Protocol):
    """Row ids of neighbours."""

    def ids(self, indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, K), nearest first; PAD_ID where an example has fewer."""


class LiveNeighbors:
    """Searches with the examples' own embeddings or captions in a pool of retrieval actors."""

    def __init__(self, train_set: TrainSet, pool: RetrievalPool, database: Database, config: NeighborsConfig) -> None:
        self._train_set, self._same, self._similarity = train_set, config.same, config.similarity
        rows = Identities.of_database(database)
        self._finder = NeighborFinder(
            pool, rows, config.num_neighbors, config.exclude, config.database.where, config.same
        )

    def ids(self, indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the protocol says."""
        rows_B = self._train_set.ids_N[indices_B]
        identities = Identities(self._identities.hashes_N3[rows_B])
        values = None if self._values is None else [self._values[n] for n in indices_B]
        if self._similarity == "bm25":
            return self._finder.by_bm25(QueryBatch(identities, self._train_set.captions(indices_B), None, values)).ids
        queries = QueryBatch(identities, [""] * len(rows_B), self._train_set.embeddings(indices_B), values)
        return self._finder.by_clip(queries).ids

    @cached_property
    def _values(self) -> list[str] | None:
        return None if self._same is None else self._train_set.column(self._same.column)

    @cached_property
    def _identities(self) -> Identities:
        return Identities.of_database(self._train_set.database)


class RememberedNeighbors:
    """Asks another source for each example once.

    Several threads may ask: what two of them find out at the same time is the same.
    """

    LIMIT_BYTES = 1 << 30

    def __init__(self, source: NeighborSource, num_examples: int, num_neighbors: int) -> None:
        self._source = source
        self._ids_NK = np.empty((num_examples, num_neighbors), np.int64)
        self._known_N = np.zeros(num_examples, np.bool_)

    @classmethod
    def fits(cls, num_examples: int, num_neighbors: int) -> bool:
        """Whether so many answers are few enough to be kept."""
        return 8 * num_examples * num_neighbors <= cls.LIMIT_BYTES

    def ids(self, indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the protocol says."""
        new_U = indices_B[~self._known_N[indices_B]]
        if len(new_U):
            self._ids_NK[new_U] = self._source.ids(new_U)
            self._known_N[new_U] = True
        return self._ids_NK[indices_B]


class PrecomputedNeighbors:
    """Reads ids that were computed before, kept in memory: 8·k bytes an example."""

    def __init__(self, train_set: TrainSet, neighbors: Neighbors, num_neighbors: int) -> None:
        self._ids_NK = neighbors.take(train_set.ids_N, num_neighbors).ids

    def ids(self, indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the protocol says."""
        return self._ids_NK[indices_B]


def start_pool(config: NeighborsConfig | None) -> RetrievalPool | None:
    """The actors that live neighbours are asked from; None where they are precomputed, or there are none."""
    if config is None or config.mode == "precomputed":
        return None
    return RetrievalPool.start(config.database.uri, config.database.version, **config.pool)


def open_neighbors(
    config: NeighborsConfig, train_set: TrainSet, database: Database, pool: RetrievalPool | None
) -> NeighborSource:
    """Live where there is a pool, else precomputed."""
    if pool is not None:
        live = LiveNeighbors(train_set, pool, database, config)
        is_kept = config.remember and RememberedNeighbors.fits(len(train_set), config.num_neighbors)
        return RememberedNeighbors(live, len(train_set), config.num_neighbors) if is_kept else live
    return PrecomputedNeighbors(train_set, open_precomputed(config, train_set, database), config.num_neighbors)


def describe_search(config: NeighborsConfig) -> str:
    """How neighbours are chosen, for a run's identity."""
    chosen = config.model_dump(mode="json", include={"similarity", "num_neighbors", "exclude", "same"})
    return f"{chosen} where {config.database.where}"


def open_precomputed(config: NeighborsConfig, train_set: TrainSet, database: Database) -> Neighbors:
    """Opens precomputed neighbours, if they are those that a live search would find.

    Raises:
        VersionError: they are of another train set or database version.
        ConfigError: they were found with other exclusions, or are too few.
    """
    assert config.precomputed is not None
    neighbors = Neighbors.open(config.precomputed, similarity=config.similarity)
    neighbors.check_database(database)
    own = train_set.database
    if neighbors.manifest.train_set_fingerprint != digest(encode_document(own.manifest)):
        raise VersionError(
            f"{config.precomputed} was not computed for version {own.version} of '{own.name}': compute it with "
            "train_set.kind=database and this train set, or use neighbors.mode=live"
        )
    theirs = neighbors.manifest
    if (theirs.exclude, theirs.where, theirs.same) != (config.exclude, config.database.where, config.same):
        raise ConfigError(
            f"{config.precomputed} was computed with search.exclude {theirs.exclude}, search.where {theirs.where} and "
            f"search.same {theirs.same}: use the same here, or compute anew"
        )
    if neighbors.num_neighbors < config.num_neighbors:
        raise ConfigError(
            f"{config.precomputed} holds {neighbors.num_neighbors} neighbours an example, and num_neighbors is "
            f"{config.num_neighbors}: lower it, or compute more"
        )
    return neighbors


def check_encoders(train_set: TrainSet, database: Database) -> None:
    """Raises EncoderMismatchError unless X and D were embedded by the same encoder."""
    own, theirs = train_set.database.manifest, database.manifest
    if (own.dim, own.fingerprint) != (theirs.dim, theirs.fingerprint):
        raise EncoderMismatchError(
            f"the train set was embedded with {own.fingerprint}, and database '{theirs.name}' with "
            f"{theirs.fingerprint}: build one of them anew"
        )


def check_enough(config: NeighborsConfig, database: Database) -> None:
    """Raises ConfigError if fewer rows may be neighbours than an example has."""
    found, where = len(database.select(config.database.filter)), config.database.where
    if config.num_neighbors > found:
        raise ConfigError(
            f"neighbors.num_neighbors {config.num_neighbors} is not possible: database '{database.name}' has {found:,} "
            "rows" + (f" that have {describe(where)}: change neighbors.database.where" if where else "")
        )


def check_disjoint(train_set: TrainSet, database: Database, where: RowsConfig) -> None:
    """Raises ConfigError if D has images of X: then a neighbour may be the example itself (P1 keeps them apart)."""
    ids_M = database.select(where.filter)
    contents_M = Identities.of_database(database).hashes_N3[ids_M][:, 2]
    contents_N = Identities.of_database(train_set.database).hashes_N3[train_set.ids_N][:, 2]
    shared_N = np.isin(contents_N, contents_M)
    if not shared_N.any():
        return
    example = train_set.database.rows(train_set.ids_N[shared_N][:1], ["key"])[0].key
    raise ConfigError(
        f"{int(shared_N.sum()):,} of {len(train_set):,} training images are in the database as well (for example "
        f"'{example}'): use another database, narrow one of them with `where`, or set allow_overlap: true"
    )


def neighbor_images(database: Database, ids_BK: NDArray[np.int64]) -> list[list[Image.Image]]:
    """The pictures of each example's neighbours; white where a row has none."""
    pictures = iter(database.images(ids_BK[ids_BK != PAD_ID]))
    blank = Image.new("RGB", (8, 8), "white")
    return [[next(pictures) or blank for row in ids if row != PAD_ID] for ids in ids_BK.tolist()]


def gather_embeddings(database: Database, ids_BK: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Raw embeddings (B, K, D) with zeros where there is no neighbour, and which there are (B, K)."""
    mask_BK = ids_BK != PAD_ID
    if mask_BK.all():
        return database.embeddings(ids_BK.reshape(-1)).reshape(*ids_BK.shape, -1), mask_BK
    embeddings_BKD = np.zeros((*ids_BK.shape, database.dim), dtype=np.float32)
    if mask_BK.any():
        embeddings_BKD[mask_BK] = database.embeddings(ids_BK[mask_BK])
    return embeddings_BKD, mask_BK
