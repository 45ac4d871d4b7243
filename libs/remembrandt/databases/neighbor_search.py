"""Neighbours of many queries, without what must not be among them: the query itself, its duplicates, its group.

Letters in names: B queries, K neighbours, F fetched candidates, N rows, D embedding.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.sources.common import key_digests
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits, Where, distinct_filters, top_k
from remembrandt.databases.manifest import ROWS, digest
from remembrandt.databases.rows import embedding_matrix
from remembrandt.encoders.base import normalise
from remembrandt.storage.folders import cache_folder, write_cached

_EXTRA = 12
_ESCALATION = 8
_QUERIES_AT_ONCE = 1024
_EXACT_ROWS = 65_536
_SCAN_ROWS = 65_536
_PATCH = re.compile(r"#\d+$")


class ExclusionConfig(Config):
    """Which rows are never neighbours of a query.

    Attributes:
        same_key: the query itself, and other patches of its image.
        duplicates: rows with the same content, byte for byte.
        same_group: rows of its group (the same entity, where the source says so; else the same image).
    """

    same_key: bool = True
    duplicates: bool = True
    same_group: bool = True


class SameConfig(Config):
    """A column that neighbours share with their query: an artist's pictures among that artist's.

    Attributes:
        column: of the database and of the queries.
        share: of the queries that this holds for; which they are is drawn by their content, the same in every run.
    """

    column: str
    share: float = Field(1.0, gt=0, le=1)


@dataclass(frozen=True)
class Identities:
    """Which image, group and content each item is: 64-bit hashes (N, 3) uint64, in this order."""

    hashes_N3: NDArray[np.uint64]

    @classmethod
    def of_table(cls, table: pa.Table | pa.RecordBatch) -> Self:
        """Of rows: columns key, box, group, digest. A patch (a key that ends in #number, and a box) is its image."""
        keys, patches = table.column("key").to_pylist(), table.column("box").is_valid().to_pylist()
        images = [_PATCH.sub("", key) if patch else key for key, patch in zip(keys, patches, strict=True)]
        contents = b"".join(value[:8] for value in table.column("digest").to_pylist())
        columns = [
            key_digests(images),
            key_digests(table.column("group").to_pylist()),
            np.frombuffer(contents, np.uint64),
        ]
        return cls(np.stack(columns, axis=1))

    @classmethod
    def of_database(cls, database: Database) -> Self:
        """Of all rows of a version: memory-mapped from a local copy that is made at first use."""
        rows = [record.sha256 for record in database.manifest.file_records if record.path.startswith(ROWS)]
        path = cache_folder() / "identities" / f"{digest(''.join(rows).encode())}.u64"
        if not path.is_file() or path.stat().st_size != database.num_rows * 24:
            batches = _scan(database.dataset)
            write_cached(path, (np.ascontiguousarray(cls.of_table(batch).hashes_N3).data for batch in batches))
        return cls(np.memmap(path, dtype=np.uint64, mode="r", shape=(database.num_rows, 3)))


@dataclass(frozen=True)
class QueryBatch:
    """B queries: raw embeddings (B, D) if they are searched by CLIP, texts if by BM25, and what each one is.

    Attributes:
        values: of the column that neighbours share with them, where there is one.
    """

    identities: Identities
    texts: list[str]
    embeddings_BD: NDArray[np.float32] | None
    values: list[str] | None = None

    @classmethod
    def of_table(cls, table: pa.Table, embeddings_BD: NDArray[np.float32] | None, same: SameConfig | None) -> Self:
        """Of rows as the row store has them. `embeddings_BD` None: those in the table, if there are any."""
        if embeddings_BD is None and "embedding" in table.column_names:
            embeddings_BD = embedding_matrix(table.column("embedding")).astype(np.float32)
        values = None if same is None else table.column(same.column).to_pylist()
        return cls(Identities.of_table(table), table.column("caption").to_pylist(), embeddings_BD, values)

    def __len__(self) -> int:
        return len(self.texts)


class RowSearcher(Protocol):
    """What is needed of a database."""

    @property
    def num_rows(self) -> int: ...

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits: ...

    def search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Hits: ...

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]: ...


Search = Callable[[NDArray[np.int64], int, Where], Hits]
"""(positions of queries in the batch, k, one filter or one a query) → hits."""


class NeighborFinder:
    """The `k` best rows of each query that are not excluded; fewer, padded, only where the database has no more.

    Candidates beyond k are fetched and the excluded ones dropped; a query left with too few fetches many more; one that
    still has too few (its group is large) is searched with its excluded rows masked; and exactly, where an approximate
    index does not look far enough even then.

    Args:
        where: column → allowed values: only such rows are neighbours.
        same: what neighbours share with their query; then queries need their `values`.
    """

    def __init__(
        self,
        database: RowSearcher,
        rows: Identities,
        num_neighbors: int,
        exclude: ExclusionConfig,
        where: Mapping[str, tuple[str, ...]] | None = None,
        same: SameConfig | None = None,
    ) -> None:
        self._database, self._rows, self._k, self._where = database, rows, num_neighbors, dict(where or {})
        self._same, self._exclude = same, exclude
        parts = (exclude.same_key, exclude.same_group, exclude.duplicates)
        self._compared = [column for column, wanted in enumerate(parts) if wanted]

    def by_clip(self, queries: QueryBatch) -> Hits:
        """Nearest by cosine similarity of embeddings."""
        embeddings_BD = queries.embeddings_BD
        assert embeddings_BD is not None

        def search(positions: NDArray[np.int64], k: int, where: Where) -> Hits:
            return self._database.search_embeddings(embeddings_BD[positions], k, where)

        def exactly(position: int, excluded: NDArray[np.int64]) -> Hits:
            return self._exact(embeddings_BD[position], excluded)

        return self._find(queries, search, exactly)

    def by_bm25(self, queries: QueryBatch) -> Hits:
        """Best by BM25 of the query's text against captions (P2 §3.2); rows that share no word are no neighbours."""

        def search(positions: NDArray[np.int64], k: int, where: Where) -> Hits:
            return self._database.search_bm25([queries.texts[p] for p in positions], k, where)

        return self._find(queries, search, None)

    def _find(
        self, queries: QueryBatch, search: Search, exactly: Callable[[int, NDArray[np.int64]], Hits] | None
    ) -> Hits:
        found = _nothing(len(queries), self._k)
        filters = self._filters(queries)
        open_B = np.array([place for place, own in enumerate(filters) if own is not None], dtype=np.int64)
        fetches = (self._k + _EXTRA, self._k * _ESCALATION + _EXTRA)
        for fetch in fetches:
            still_open = []
            for first in range(0, len(open_B), _QUERIES_AT_ONCE):
                some_B = open_B[first : first + _QUERIES_AT_ONCE]
                hits = search(some_B, min(fetch, self._database.num_rows), _as_few([filters[p] for p in some_B]))
                kept = self._without_excluded(queries, some_B, hits)
                found.ids[some_B], found.scores[some_B] = kept.ids, kept.scores
                complete_B = (kept.ids != PAD_ID).all(axis=1)
                if exactly is None:  # A BM25 search that comes back with fewer rows has named every row that matches.
                    complete_B |= (hits.ids == PAD_ID).any(axis=1) | (fetch >= self._database.num_rows)
                still_open.append(some_B[~complete_B])
            open_B = np.concatenate([open_B[:0], *still_open])
        for position in open_B.tolist():
            excluded, own = self._excluded_rows(queries, position), filters[position] or Filter()
            masked = search(np.array([position]), self._k, replace(own, exclude_ids=tuple(excluded.tolist())))
            attainable = min(self._k, self._database.num_rows - len(excluded))
            # Under a filter, how many rows are attainable is not known here; a masked search looks further by itself.
            if exactly is not None and not own and (masked.ids != PAD_ID).sum() < attainable:
                masked = exactly(position, excluded)
            found.ids[position], found.scores[position] = masked.ids[0], masked.scores[0]
        return found

    def _filters(self, queries: QueryBatch) -> list[Filter | None]:
        """What the neighbours of each query must have; None where no row can have it."""
        everywhere = Filter(equals=self._where)
        if self._same is None:
            return [everywhere] * len(queries)
        assert queries.values is not None
        narrow: dict[str, Filter | None] = {}
        for value in dict.fromkeys(queries.values):
            where = narrowed(self._where, self._same.column, value)
            narrow[value] = None if where is None else Filter(equals=where)
        drawn_B = (queries.identities.hashes_N3[:, 2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return [
            narrow[value] if drawn < self._same.share else everywhere
            for value, drawn in zip(queries.values, drawn_B.tolist(), strict=True)
        ]

    def _without_excluded(self, queries: QueryBatch, positions_B: NDArray[np.int64], hits: Hits) -> Hits:
        theirs_BF3 = self._rows.hashes_N3[np.maximum(hits.ids, 0)]
        same_BF3 = theirs_BF3 == queries.identities.hashes_N3[positions_B][:, None]
        return top_k(np.where(same_BF3[..., self._compared].any(axis=-1), PAD_ID, hits.ids), hits.scores, self._k)

    def _excluded_rows(self, queries: QueryBatch, position: int) -> NDArray[np.int64]:
        """All rows that must not answer one query: a pass over N hashes."""
        own_3 = queries.identities.hashes_N3[position]
        excluded_N = np.zeros(self._database.num_rows, dtype=bool)
        for column in self._compared:
            excluded_N |= self._rows.hashes_N3[:, column] == own_3[column]
        return np.flatnonzero(excluded_N)

    def _exact(self, embedding_D: NDArray[np.float32], excluded: NDArray[np.int64]) -> Hits:
        """The answer by computing every score: a pass over N embeddings."""
        query_1D = normalise(embedding_D[None])
        best = Hits(np.empty((1, 0), np.int64), np.empty((1, 0), np.float32))
        for first in range(0, self._database.num_rows, _EXACT_ROWS):
            ids = np.arange(first, min(first + _EXACT_ROWS, self._database.num_rows))
            scores_1N = query_1D @ normalise(self._database.embeddings(ids)).T
            piece = Hits(np.where(np.isin(ids, excluded), PAD_ID, ids)[None], scores_1N)
            best = Hits.merge([best, piece], self._k)
        return best


def _as_few(filters: Sequence[Filter | None]) -> Where:
    """One filter where all are the same."""
    distinct, _ = distinct_filters(filters)
    return list(filters) if len(distinct) > 1 else distinct[0] or None


def narrowed(where: Mapping[str, tuple[str, ...]], column: str, value: str) -> dict[str, tuple[str, ...]] | None:
    """`where` with one value more required; None if no row can have it."""
    if column in where and value not in where[column]:
        return None
    return {**where, column: (value,)}


def _nothing(count: int, k: int) -> Hits:
    return Hits(np.full((count, k), PAD_ID, np.int64), np.full((count, k), -np.inf, np.float32))


def _scan(dataset: lance.LanceDataset) -> Iterator[pa.RecordBatch]:
    scanner = dataset.scanner(columns=["key", "box", "group", "digest"], batch_size=_SCAN_ROWS, scan_in_order=True)
    return scanner.to_batches()
