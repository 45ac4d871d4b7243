"""Output folders of clip-retrieval's `clip_inference`: ready embeddings with their metadata."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.data.sources.common import (
    DEFAULT_FIELDS,
    PEEK_ITEMS,
    BaseSourceConfig,
    PartedSource,
    clean_text,
    key_digests,
    repeated_keys,
)
from remembrandt.data.sources.fetch import FileFetcher
from remembrandt.data.sources.listing import Listing, content_digest, is_gone, list_files, map_ahead
from remembrandt.data.sources.npy import read_npy_header, read_npy_rows
from remembrandt.data.sources.tables import DamagedFileError, OpenTables, inspect_table, read_rows
from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.store import open_store

_KEY_COLUMNS = ("image_path", "key")
_METADATA_COLUMNS = ("captions", "group", "licence", "license")


class ClipRetrievalConfig(BaseSourceConfig):
    """A folder with `img_emb/img_emb_*.npy` and `metadata/metadata_*.parquet`, paired by their numbers.

    The key is `image_path`, else `key`, else `<number>/<row>`. The embeddings are taken as they are: the encoder that a
    database is built for must be the one that made them.

    Attributes:
        embeddings: folder of the embeddings.
        images: where `image_path` leads: 'auto' reads images if the first row's file is there, 'none' never does, any
            other value is the folder (path or URI) that relative paths start from. Once images are read, a missing one
            is a problem of its row.
    """

    kind: Literal["clip_retrieval"] = "clip_retrieval"
    embeddings: str = "img_emb"
    images: str = "auto"


class ClipRetrievalSource(PartedSource):
    """Reads `ClipRetrievalConfig`. A part is one embedding file with its metadata."""

    has_embeddings = True
    config: ClipRetrievalConfig

    def __init__(self, config: ClipRetrievalConfig) -> None:
        self.config = config
        listing = list_files(config.uri, (".npy", ".parquet"), config.include)
        self._store = listing.store
        self._tables = _pair(config, listing)
        self._columns: dict[str, tuple[str, ...]] = {}
        self._open = OpenTables(listing.store)
        self._shapes = {part: self._check_pair(part) for part in self._tables}
        self._repeated: dict[str, frozenset[int]] | None = None
        dims = {part: shape[1] for part, shape in self._shapes.items()}
        if len(set(dims.values())) > 1:
            raise SourceError(f"{config.uri}: embeddings differ in size: {dims}; they must come from one encoder")
        base = config.images if config.images not in ("auto", "none") else config.uri
        self._files = FileFetcher(open_store(base))
        super().__init__(config, content_digest(listing.files))
        self._reads_images = config.images not in ("auto", "none") or (config.images == "auto" and self._has_images())

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        if self._repeated is None:
            digests = [(part, key_digests(self._keys(part))) for part in self._tables]
            self._repeated = repeated_keys(digests, f"image_path in {self.config.uri}/metadata must not repeat")
        return [(part, [self._shapes[part][0]]) for part in self._tables]

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        return map_ahead(self._store, self._with_image, self._rows(block))

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        part = next(iter(self._tables))
        columns = [name for name in DEFAULT_FIELDS if name in self._columns[part]]
        if columns:
            yield from islice(read_rows(self._store, self._tables[part], 0, PEEK_ITEMS, columns), PEEK_ITEMS)

    def _rows(self, block: SourceBlock) -> Iterator[SourceRecord]:
        wanted = {*_KEY_COLUMNS, *_METADATA_COLUMNS, *self.config.caption_keys, *self.field_names}
        columns = [name for name in self._columns[block.part] if name in wanted]
        rows = self._open.rows(self._tables[block.part], block.start, block.stop, columns)
        embeddings = read_npy_rows(self._store, block.part, block.start, block.stop)
        repeated = (self._repeated or {}).get(block.part, frozenset())
        position = block.start
        try:
            for embedding, row in zip(embeddings, rows, strict=True):
                record = self._reader.record(self._key(block.part, position, row), row)
                yield _checked(record, cast(NDArray[np.floating], embedding), position in repeated)
                position += 1
        except DamagedFileError as error:
            for lost in range(position, block.stop):
                yield SourceRecord(f"{block.part}/{lost}", problem=str(error))

    def _with_image(self, record: SourceRecord) -> SourceRecord:
        if record.problem is not None or not self._reads_images:
            return record
        try:
            return replace(record, image=self._files.read(record.key))
        except StorageError as error:
            if not is_gone(error):
                raise
            return SourceRecord(record.key, problem=str(error))

    def _has_images(self) -> bool:
        part = next(iter(self._tables))
        if "image_path" not in self._columns[part]:
            return False
        row = next(iter(read_rows(self._store, self._tables[part], 0, 1, ["image_path"])), {})
        try:
            self._files.read(clean_text(row.get("image_path")) or "\0")
        except (StorageError, ValueError):
            return False
        return True

    def _check_pair(self, part: str) -> tuple[int, int]:
        """Rows and dimension of an embedding file. Raises SourceError unless its metadata has as many rows."""
        where = f"{self.config.uri}/{part}"
        try:
            header = read_npy_header(self._store, part)
            table = inspect_table(self._store, self._tables[part])
        except DamagedFileError as error:
            raise SourceError(f"{where} or its metadata cannot be read: {error}") from error
        if len(header.shape) != 2 or header.dtype.kind != "f":
            raise SourceError(
                f"{where} must be a matrix of floats (rows × dimension), not {header.shape} {header.dtype}"
            )
        if header.shape[0] != table.rows:
            raise SourceError(
                f"{where} has {header.shape[0]} embeddings but {self._tables[part]} has {table.rows} rows"
            )
        self._columns[part] = table.columns
        return header.shape[0], header.shape[1]

    def _keys(self, part: str) -> Iterator[str]:
        columns = [name for name in self._columns[part] if name in _KEY_COLUMNS]
        if not columns:
            return
        rows = read_rows(self._store, self._tables[part], 0, self._shapes[part][0], columns)
        for position, row in enumerate(rows):
            yield self._key(part, position, row)

    def _key(self, part: str, position: int, row: Mapping[str, Any]) -> str:
        stated = (clean_text(row.get(name)) for name in _KEY_COLUMNS)
        return next(filter(None, stated), f"{_number(part)}/{position}")


def _pair(config: ClipRetrievalConfig, listing: Listing) -> dict[str, str]:
    """Embedding file → metadata file. Raises SourceError if either is alone."""
    paths = [entry.path for entry in listing.files]
    arrays = {
        _number(path): path for path in paths if path.startswith(f"{config.embeddings}/") and path.endswith(".npy")
    }
    tables = {_number(path): path for path in paths if path.startswith("metadata/") and path.endswith(".parquet")}
    if not arrays:
        raise SourceError(
            f"{config.uri} has no {config.embeddings}/*.npy: it must be an output folder of clip_inference"
        )
    alone = sorted(arrays.keys() ^ tables.keys())
    if alone:
        raise SourceError(
            f"{config.uri}: number {alone[0]} is not in both {config.embeddings}/ and metadata/; copy the whole folder"
        )
    return {arrays[number]: tables[number] for number in sorted(arrays)}


def _number(path: str) -> str:
    """`img_emb/img_emb_07.npy` → `07`."""
    return path.rpartition("/")[2].rpartition(".")[0].rpartition("_")[2]


def _checked(record: SourceRecord, embedding_D: NDArray[np.floating], is_repeated: bool) -> SourceRecord:
    if is_repeated:
        return SourceRecord(record.key, problem=f"key '{record.key}' occurs before in the same file")
    if not np.isfinite(embedding_D).all():
        return SourceRecord(record.key, problem="its embedding has values that are not finite")
    return replace(record, embedding=embedding_D.astype(np.float32))
