"""Open a published database version, search it, and read its rows.

Letters in names: B queries, K results, D embedding, N rows.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from remembrandt import encoders
from remembrandt.configuration import nearest
from remembrandt.data.decode import DecodeConfig, decode_image
from remembrandt.databases.bm25 import Bm25Config, Bm25Info, Bm25Searcher, open_bm25
from remembrandt.databases.bm25.config import URL_VARIABLE
from remembrandt.databases.cache import check_files, local_file
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.embeddings import EmbeddingColumn
from remembrandt.databases.hits import PAD_ID, Filter, Hits, Where, distinct_filters, search_each, top_k
from remembrandt.databases.manifest import ROWS, TRAINED_INDEX, Manifest, digest
from remembrandt.databases.rows import BASE_COLUMNS, Row, open_rows, take_rows
from remembrandt.databases.texts import TEXT_COLUMNS, TextColumns
from remembrandt.databases.vectors import ShardFile, VectorIndex, VectorPlan
from remembrandt.encoders import EncoderConfig
from remembrandt.encoders.base import ImageTextEncoder, normalise
from remembrandt.errors import EncoderMismatchError, SearchError
from remembrandt.storage import Store

Check = Literal["files", "sizes"]
_FILTER_CACHE = 64


class Database:
    """One version of a database, opened for reading. Thread-safe; versions are immutable, so answers never change.

    Use `Database.open`. Search works on L2-normalised embeddings; `embeddings` gives the raw ones for conditioning.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        shards: Sequence[int] | None = None,
        encoder: ImageTextEncoder | None = None,
        bm25: Bm25Config | None = None,
    ) -> None:
        self._store, self.manifest = store, manifest
        self._bm25_config = bm25
        self._shards = tuple(shards) if shards is not None else None
        self._encoder = encoder
        self.dataset = open_rows(store)
        self._matching = lru_cache(_FILTER_CACHE)(self._find_matching)

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        version: str | None = None,
        encoder: ImageTextEncoder | EncoderConfig | None = None,
        verify: Check = "files",
        shards: Sequence[int] | None = None,
    ) -> Self:
        """Opens a version for search. Elasticsearch is looked for at ELASTICSEARCH_URL, else where the build found it.

        Args:
            uri: `<root>/<name>`, a path or `s3://…`.
            version: its id; None for the live one.
            encoder: for queries by text and image. None: the one that the version was built with.
            verify: `files` hashes every file that this machine has not found intact before; `sizes` looks at presence
                and size alone (for very large versions).
            shards: load only these vector shards (retrieval actors); None for all.

        Raises:
            VersionError: no such database or version, or a newer schema.
            CorruptionError: a missing, extra, truncated or altered file, by name.
            EncoderMismatchError: `encoder` is not the one that embedded the rows; both are named.
        """
        catalog = Catalog.open(uri)
        manifest = catalog.live_manifest() if version is None else catalog.manifest(version)
        return cls._open(catalog.version_store(manifest.version), manifest, encoder, verify, shards)

    @classmethod
    def open_unpublished(cls, store: Store, manifest: Manifest, bm25: Bm25Config | None = None) -> Self:
        """A version whose manifest is not written yet: for the checks that come before it.

        Args:
            bm25: how Elasticsearch is reached; None: as `open` does.
        """
        return cls(store, manifest, bm25=bm25)

    @classmethod
    def _open(
        cls,
        store: Store,
        manifest: Manifest,
        encoder: ImageTextEncoder | EncoderConfig | None,
        verify: Check,
        shards: Sequence[int] | None,
    ) -> Self:
        check_files(store, manifest.file_records, sizes_only=verify == "sizes")
        opened = encoders.open_encoder(encoder) if isinstance(encoder, EncoderConfig) else encoder
        if opened is not None:
            check_encoder(manifest, opened)
        return cls(store, manifest, shards, opened)

    @property
    def name(self) -> str:
        """The database's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Id of the opened version."""
        return self.manifest.version

    @property
    def num_rows(self) -> int:
        """Number of rows N; ids run from 0 to N - 1."""
        return self.manifest.rows

    def __len__(self) -> int:
        return self.num_rows

    @property
    def dim(self) -> int:
        """Embedding size D.

        Raises:
            SearchError: a text-only database.
        """
        if self.manifest.dim is None:
            raise SearchError(f"database '{self.name}' holds texts only and has no embeddings: search it with BM25")
        return self.manifest.dim

    @cached_property
    def encoder(self) -> ImageTextEncoder:
        """The encoder for queries: the one given, else the one in the build's configuration."""
        if self._encoder is not None:
            return self._encoder
        config = self.manifest.config.get("encoder")
        if config is None:
            raise SearchError(
                f"database '{self.name}' was built without an encoder: search it with BM25 or ready embeddings"
            )
        encoder = encoders.open_encoder(EncoderConfig.model_validate(config))
        check_encoder(self.manifest, encoder)
        return encoder

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        """The `k` rows of highest cosine similarity; queries (B, D) of any norm. `where` may be one filter a query.

        Raises:
            SearchError: wrong D, k larger than the database, unknown filter column, no vectors.
        """
        queries = np.atleast_2d(np.asarray(queries_BD, dtype=np.float32))
        if queries.shape[1] != self.dim:
            raise SearchError(f"queries have {queries.shape[1]} dimensions, and database '{self.name}' has {self.dim}")
        self._check_k(k)
        if isinstance(where, Filter | None):
            return self._index.search(normalise(queries), k, self._mask(where) if where else None)
        distinct, which_B = distinct_filters(where)
        if not self._index.takes(len(distinct)):
            return search_each(where, k, lambda places, own: self.search_embeddings(queries[places], k, own))
        masks = [self._mask(own) if own else None for own in distinct]
        return self._index.search_each(normalise(queries), k, masks, which_B)

    def search_texts(self, texts: Sequence[str], k: int, where: Filter | None = None) -> Hits:
        """The `k` rows nearest to the CLIP embedding of each text."""
        return self.search_embeddings(self.encoder.encode_texts(list(texts)), k, where)

    def search_images(self, images: Sequence[Image.Image], k: int, where: Filter | None = None) -> Hits:
        """The `k` rows nearest to the CLIP embedding of each image."""
        return self.search_embeddings(self.encoder.encode_images(list(images)), k, where)

    def search_ids(self, ids: Sequence[int], k: int, where: Filter | None = None) -> Hits:
        """The `k` nearest other rows of each row."""
        self._check_k(k, self.num_rows - 1)
        found = self.search_embeddings(self.embeddings(ids), k + 1, where)
        own = found.ids == np.asarray(ids, dtype=np.int64)[:, None]
        return top_k(np.where(own, PAD_ID, found.ids), found.scores, k)

    def search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Hits:
        """The `k` rows of highest BM25 score (k1 1.2, b 0.75) over caption and captions; fewer where fewer match."""
        self._check_k(k)
        if not isinstance(where, Filter | None):
            return search_each(where, k, lambda places, own: self.search_bm25([texts[p] for p in places], k, own))
        if where:
            self._check_columns(where)
        return self._bm25.search(list(texts), k, where)

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Raw embeddings (N, D) float32 of any rows, in the order asked."""
        return self._embeddings.take(self._check_ids(ids))

    def rows(self, ids: ArrayLike, columns: Sequence[str] | None = None) -> list[Row]:
        """Rows by id, in the order asked. `columns` None: all but the image; others keep their defaults.

        Raises:
            SearchError: an id or column that does not exist.
        """
        known = [*BASE_COLUMNS, *self.manifest.fields]
        wanted = [c for c in known if c != "image"] if columns is None else list(columns)
        for column in wanted:
            if column not in known:
                raise SearchError(f"database '{self.name}' has no column '{column}': {nearest(column, known)}")
        checked = self._check_ids(ids)
        if {*wanted} <= {"id", *TEXT_COLUMNS, *self.manifest.fields} and self._texts is not None:
            return self._texts.rows(checked, wanted)
        return take_rows(self.dataset, checked.tolist(), wanted, self.manifest.fields)

    def select(self, where: Filter | None = None) -> NDArray[np.int64]:
        """Ids of the rows that a filter allows, in order; None: of all."""
        return np.flatnonzero(self._mask(where)).astype(np.int64) if where else np.arange(self.num_rows)

    def images(self, ids: ArrayLike) -> list[Image.Image | None]:
        """Decoded RGB images of rows; None where a row has none."""
        found = self.rows(ids, ["image"])
        return [None if row.image is None else decode_image(row.image, DecodeConfig()) for row in found]

    def proposal(self) -> NDArray[np.float64]:
        """p_D (N,), the probability of each row (P1 Eq. 5), where the version was built with neighbours.

        Raises:
            SearchError: it was not.
        """
        if self.manifest.neighbors is None:
            raise SearchError(
                f"database '{self.name}' has no proposal: run jobs/precompute_neighbors.py, or build with "
                "`neighbors.train_set`"
            )
        return np.load(self._file(self.manifest.neighbors.proposal))

    def close(self) -> None:
        """Gives back memory maps and connections."""
        for name in ("_index", "_bm25", "_embeddings", "_texts"):
            part = self.__dict__.pop(name, None)
            if hasattr(part, "close"):
                part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _index(self) -> VectorIndex:
        info = self.manifest.vectors
        if info is None:
            raise SearchError(f"database '{self.name}' has no vector index: search it with BM25")
        shards = [s for n, s in enumerate(info.shards) if self._shards is None or n in self._shards]
        files = [ShardFile(self._file(s.path), s.first_id, s.rows) for s in shards]
        return VectorIndex.open(
            VectorPlan.from_json(info.plan), self._file(TRAINED_INDEX), files, fetch=self._embeddings.take_normalised
        )

    @cached_property
    def _embeddings(self) -> EmbeddingColumn:
        return EmbeddingColumn(self.dataset, self.num_rows, self.dim, self._rows_identity)

    @cached_property
    def _texts(self) -> TextColumns | None:
        return TextColumns.open(self.dataset, self.manifest.fields, self._rows_identity)

    @property
    def _rows_identity(self) -> str:
        """Of the row store's contents, for what this machine keeps of it."""
        rows = [record.sha256 for record in self.manifest.file_records if record.path.startswith(ROWS)]
        return digest("".join(rows).encode())

    @cached_property
    def _bm25(self) -> Bm25Searcher:
        if self.manifest.bm25 is None:
            raise SearchError(
                f"database '{self.name}' was built without BM25 (bm25.backend: none): search it by text, "
                "image or embedding"
            )
        info = Bm25Info(**self.manifest.bm25)
        folder: Path | None = None
        for record in self.manifest.file_records:
            if record.path.startswith("bm25/"):
                folder = self._bm25_folder()
                break
        return open_bm25(info, folder, url=None, config=self._bm25_config or self._bm25_of_build())

    def _bm25_of_build(self) -> Bm25Config:
        """Where the build found Elasticsearch, without credentials; the environment's address goes before it."""
        built = self.manifest.config.get("bm25") or {}
        if os.environ.get(URL_VARIABLE):
            return Bm25Config()
        return Bm25Config(**{name: built[name] for name in ("url", "ca_certs", "verify_certs") if name in built})

    def _bm25_folder(self) -> Path:
        """The embedded index as one local folder (files of remote versions are linked together in the cache)."""
        local = self._store.local_path("bm25")
        if local is not None:
            return local
        from remembrandt.databases.cache import linked_folder

        return linked_folder(self._store, [r for r in self.manifest.file_records if r.path.startswith("bm25/")])

    def _file(self, path: str) -> Path:
        (record,) = [record for record in self.manifest.file_records if record.path == path]
        return local_file(self._store, record)

    def _mask(self, where: Filter) -> NDArray[np.bool_]:
        """Which of all N rows may answer."""
        matching = self._matching(replace(where, exclude_ids=()))
        if not where.exclude_ids:
            return matching
        mask = matching.copy()
        excluded = np.asarray(where.exclude_ids, dtype=np.int64)
        mask[excluded[(excluded >= 0) & (excluded < self.num_rows)]] = False
        return mask

    def _find_matching(self, where: Filter) -> NDArray[np.bool_]:
        """Rows by their columns: a scan, which many queries share whose own rows are excluded one by one."""
        self._check_columns(where)
        condition = _sql(where)
        mask = np.full(self.num_rows, not condition)
        if condition:
            table = self.dataset.to_table(columns=["id"], filter=condition)
            mask[table.column("id").to_numpy()] = True
        mask.flags.writeable = False
        return mask

    def _check_columns(self, where: Filter) -> None:
        known = ["key", "group", "licence", *self.manifest.fields]
        for column in where.equals:
            if column not in known:
                raise SearchError(f"database '{self.name}' cannot be filtered by '{column}': {nearest(column, known)}")

    def _check_k(self, k: int, most: int | None = None) -> None:
        most = self.num_rows if most is None else most
        if not 1 <= k <= most:
            raise SearchError(
                f"k = {k} is not possible: database '{self.name}' has {self.num_rows:,} rows; ask for 1 to {most:,}"
            )

    def _check_ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        array = np.atleast_1d(np.asarray(ids, dtype=np.int64))
        if array.size and (array.min() < 0 or array.max() >= self.num_rows):
            wrong = array[(array < 0) | (array >= self.num_rows)][0]
            raise SearchError(f"there is no row {wrong}: database '{self.name}' has rows 0 to {self.num_rows - 1:,}")
        return array


def check_encoder(manifest: Manifest, encoder: ImageTextEncoder) -> None:
    """Raises EncoderMismatchError unless the encoder is the one that embedded the rows."""
    if manifest.fingerprint is not None and encoder.fingerprint != manifest.fingerprint:
        raise EncoderMismatchError(
            f"database '{manifest.name}' was embedded with {manifest.fingerprint}, not with {encoder.fingerprint}: "
            "open it with its own encoder, or build it anew"
        )


def _sql(where: Filter) -> str:
    """The filter as a Lance condition; ids are handled by the mask."""
    terms = [f"`{column}` IN ({_quoted(values)})" if values else "false" for column, values in where.equals.items()]
    if where.exclude_groups:
        terms.append(f"`group` NOT IN ({_quoted(where.exclude_groups)})")
    if where.exclude_keys:
        terms.append(f"`key` NOT IN ({_quoted(where.exclude_keys)})")
    return " AND ".join(terms)


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
