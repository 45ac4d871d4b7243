"""Parquet files with images: img2dataset's parquet output, LAION-style tables, tables of paths."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Literal

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
from remembrandt.data.sources.listing import content_digest, is_gone, list_files, map_ahead
from remembrandt.data.sources.tables import (
    DamagedFileError,
    OpenTables,
    TableShape,
    inspect_table,
    read_rows,
    require_column,
)
from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.store import open_store

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "img", "bytes", "content")
PATH_COLUMNS = ("image_path", "path", "file_path", "filepath", "file_name", "filename", "file")
KEY_COLUMNS = ("key", "id")
_COMMON_COLUMNS = ("captions", "group", "licence", "license", "status")


class TableConfig(BaseSourceConfig):
    """What tables of any kind have.

    Attributes:
        key: column with a unique key. Default: `key` or `id` if present, else `<file>/<row number>` is the key.
    """

    key: str | None = None


class ParquetConfig(TableConfig):
    """Parquet files with one image a row. Nothing is downloaded: tables of URLs go through img2dataset first.

    Rows that img2dataset could not fetch (`status` is not 'success') are passed over.

    Attributes:
        image: column with encoded images (binary, or a struct with `bytes`). Default: the first one present of jpg,
            jpeg, png, webp, image, image_bytes, img, bytes and content.
        path: column with paths or URIs of images, if there is no image column. Default: the first one present of
            image_path, path, file_path, filepath, file_name, filename and file; else img2dataset's `files` layout
            (`<table's name>/<key>.<extension>`) is assumed.
        images: folder that relative paths start from; default: the source's folder.
        extension: of image files in the `files` layout.
    """

    kind: Literal["parquet"] = "parquet"
    image: str | None = None
    path: str | None = None
    images: str | None = None
    extension: str = "jpg"


class TableSource(PartedSource):
    """Rows of parquet files: key, metadata, and whatever `_finish` adds. Blocks end at row groups where they can."""

    config: TableConfig

    def __init__(self, config: TableConfig) -> None:
        listing = list_files(config.uri, (".parquet",), config.include)
        self._store = listing.store
        self._paths = [entry.path for entry in listing.files]
        self._shapes: dict[str, TableShape | str] = {}
        self._tables = OpenTables(self._store)
        self._repeated: dict[str, frozenset[int]] = {}
        self._first = self._first_shape()
        self._key_column = self._choose(config.key, KEY_COLUMNS)
        super().__init__(config, content_digest(listing.files))
        for name in config.fields or ():
            require_column(name, self._first, config.uri)

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        missing = [path for path in self._paths if path not in self._shapes or path not in self._repeated]
        if missing:
            with ThreadPoolExecutor(8) as pool:
                checked = list(pool.map(self._check_part, missing))
            remedy = f"name a column with unique keys in key of {self.config.uri}"
            found = repeated_keys(list(zip(missing, checked, strict=True)), remedy)
            self._repeated |= {path: found.get(path, frozenset()) for path in missing}
        for path in self._paths:
            shape = self._shapes[path]
            yield path, [1] if isinstance(shape, str) else shape.boundaries

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        shape = self._shape(block.part)
        if isinstance(shape, str):
            yield SourceRecord(block.part, problem=shape)
            return
        yield from map_ahead(self._store, lambda prepare: prepare(), self._prepared(block, shape))

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        part = next((path for path in self._paths if isinstance(self._shape(path), TableShape)), None)
        columns = [name for name in DEFAULT_FIELDS if name in self._first.columns]
        if part is not None and columns:
            yield from islice(self._tolerant_rows(part, 0, PEEK_ITEMS, columns), PEEK_ITEMS)

    def _finish(self, part: str, key: str, row: dict[str, Any]) -> SourceRecord:
        return self._reader.record(key, row)

    def _extra_columns(self) -> tuple[str, ...]:
        return ()

    def _prepared(self, block: SourceBlock, shape: TableShape) -> Iterator[Callable[[], SourceRecord]]:
        """What is left to do for each row of the block, so that files of several rows can be fetched at once."""
        position, repeated = block.start, self._repeated.get(block.part, frozenset())
        try:
            for row in self._tables.rows(block.part, block.start, block.stop, self._columns(shape)):
                key = self._key_of(block.part, position, row)
                if position in repeated:
                    reason = f"key '{key}' occurs before in {block.part}"
                    yield partial(SourceRecord, f"{block.part}/{position}", problem=reason)
                elif clean_text(row.get("status")) in ("", "success"):
                    yield partial(self._finish, block.part, key, row)
                position += 1
        except DamagedFileError as error:
            for lost in range(position, block.stop):
                yield partial(SourceRecord, f"{block.part}/{lost}", problem=str(error))

    def _columns(self, shape: TableShape) -> list[str]:
        wanted = {*_COMMON_COLUMNS, *self.config.caption_keys, *self.field_names, *self._extra_columns()}
        wanted |= {self._key_column} if self._key_column else set()
        return [name for name in shape.columns if name in wanted]

    def _key_of(self, part: str, position: int, row: Mapping[str, Any]) -> str:
        key = clean_text(row.get(self._key_column)) if self._key_column else ""
        return key or f"{part.removesuffix('.parquet')}/{position}"

    def _check_part(self, path: str) -> NDArray[np.uint64]:
        """Digests of the part's keys; checks that it has the columns that the first part has."""
        shape = self._shape(path)
        if isinstance(shape, str):
            return key_digests([path])
        for name in filter(None, (self._key_column, *self._extra_columns())):
            require_column(name, shape, f"{self.config.uri}/{path}")
        if self._key_column is None:
            return key_digests(())
        rows = self._tolerant_rows(path, 0, shape.rows, [self._key_column])
        return key_digests(self._key_of(path, position, row) for position, row in enumerate(rows))

    def _tolerant_rows(self, path: str, start: int, stop: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Rows up to the first damage, which reading the block will report."""
        try:
            yield from read_rows(self._store, path, start, stop, columns)
        except DamagedFileError:
            return

    def _shape(self, path: str) -> TableShape | str:
        """The table's shape, or why it has none."""
        if path not in self._shapes:
            try:
                self._shapes[path] = inspect_table(self._store, path)
            except DamagedFileError as error:
                self._shapes[path] = str(error)
        return self._shapes[path]

    def _first_shape(self) -> TableShape:
        for path in self._paths:
            shape = self._shape(path)
            if isinstance(shape, TableShape):
                return shape
        raise SourceError(f"{self._paths[0]}: {self._shape(self._paths[0])}; no parquet file there can be read")

    def _choose(self, named: str | None, usual: Sequence[str]) -> str | None:
        if named is not None:
            require_column(named, self._first, str(self._store.uri))
            return named
        return next((name for name in usual if name in self._first.columns), None)


class ParquetSource(TableSource):
    """Reads `ParquetConfig`."""

    config: ParquetConfig

    def __init__(self, config: ParquetConfig) -> None:
        self._image_column: str | None = None
        self._path_column: str | None = None
        super().__init__(config)
        self._image_column = None if config.path else self._choose(config.image, IMAGE_COLUMNS)
        if self._image_column is None:
            self._path_column = self._choose(config.path, PATH_COLUMNS)
        if self._image_column is None and self._path_column is None:
            self._require_folders()
        self._files = FileFetcher(open_store(config.images) if config.images else self._store)

    def _extra_columns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self._image_column, self._path_column)))

    def _finish(self, part: str, key: str, row: dict[str, Any]) -> SourceRecord:
        try:
            image = self._image(part, key, row)
        except StorageError as error:
            if not is_gone(error):
                raise
            return SourceRecord(key, problem=str(error))
        if image is None:
            return SourceRecord(key, problem=f"its {self._image_column or self._path_column} is empty")
        return self._reader.record(key, row, image=image)

    def _image(self, part: str, key: str, row: Mapping[str, Any]) -> bytes | None:
        if self._image_column is not None:
            value = row[self._image_column]
            if isinstance(value, dict):
                value = value.get("bytes") or value.get("path")
            return self._files.read(value) if isinstance(value, str) and value else value or None
        if self._path_column is not None:
            path = clean_text(row[self._path_column])
            return self._files.read(path) if path else None
        return self._files.read(f"{part.removesuffix('.parquet')}/{key}.{self.config.extension}")

    def _require_folders(self) -> None:
        """Without image and path columns the images must lie in folders named like the tables."""
        part = next(path for path in self._paths if self._shapes.get(path) is self._first)
        stem = part.removesuffix(".parquet")
        if self._store.files(stem):
            return
        columns = ", ".join(self._first.columns)
        if self._store.exists(f"{stem}.tar"):
            raise SourceError(f"the images of {self._store.uri}/{part} are in {stem}.tar: use kind: webdataset")
        raise SourceError(
            f"{self._store.uri}/{part} has no column with images or their paths (it has {columns}): name it in "
            "image or path; a table of URLs must be fetched with img2dataset first"
        )
