"""Texts without images: JSON lines (plain, gzip, zstandard) and parquet tables."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.data.sources.common import (
    PEEK_ITEMS,
    PartedSource,
    clean_text,
    key_digests,
    parse_metadata,
    repeated_keys,
)
from remembrandt.data.sources.listing import content_digest, list_files
from remembrandt.data.sources.parquet import KEY_COLUMNS, TableConfig, TableSource
from remembrandt.errors import SourceError
from remembrandt.storage.store import Store

_JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")
_MARK_EVERY = 1024
_CHUNK_BYTES = 1 << 16
_NOTHING_OPEN: tuple[str, int, Iterator[tuple[int, bytes]]] = ("", 0, iter(()))


class TextsConfig(TableConfig):
    """Files `*.jsonl`, `*.jsonl.gz`, `*.jsonl.zst` or `*.parquet` with a text each line or row; one kind of file only.

    The text is the first one of `caption_keys` that is there; `captions`, `group` and `licence` are read too.
    """

    kind: Literal["texts"] = "texts"


@dataclass
class _LineIndex:
    """How many items a file has, byte offsets of every 1024th line (after decompression), and why it ends early."""

    count: int = 0
    offsets: list[int] = field(default_factory=list)
    problem: str | None = None


class ParquetTextsSource(TableSource):
    """Reads `TextsConfig` for parquet files."""

    def __init__(self, config: TextsConfig) -> None:
        super().__init__(config)
        if not set(config.caption_keys) & set(self._first.columns):
            columns = ", ".join(self._first.columns)
            raise SourceError(f"{config.uri} has none of the columns caption_keys names (it has {columns})")

    def _finish(self, part: str, key: str, row: dict[str, Any]) -> SourceRecord:
        return _with_text(self._reader.record(key, row))


class JsonlSource(PartedSource):
    """Reads `TextsConfig` for JSON lines. Every file is read once to index its lines."""

    config: TextsConfig

    def __init__(self, config: TextsConfig) -> None:
        listing = list_files(config.uri, _JSON_SUFFIXES, config.include)
        self._store = listing.store
        self._paths = [entry.path for entry in listing.files]
        self._indexes: dict[str, _LineIndex] = {}
        self._open = _NOTHING_OPEN
        self._repeated: dict[str, frozenset[int]] = {}
        super().__init__(config, content_digest(listing.files))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": _NOTHING_OPEN}

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        missing = [path for path in self._paths if path not in self._indexes]
        if missing:
            digests = [(path, key_digests(self._index(path))) for path in missing]
            self._repeated = repeated_keys(digests, f"name a key that is unique in key of {self.config.uri}")
        return [(path, [self._indexes[path].count]) for path in self._paths]

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        if block.part not in self._indexes:
            for _ in self._index(block.part):
                pass
        index = self._indexes[block.part]
        position, lines = self._lines_before(block)
        try:
            for _, line in islice(lines, block.stop - position):
                if position >= block.start:
                    yield self._record(block.part, position, line)
                position += 1
        except OSError as error:
            if error.errno is not None:
                raise
            yield SourceRecord(f"{block.part}/{position}", problem=index.problem)
        else:
            self._open = (block.part, position, lines)

    def _lines_before(self, block: SourceBlock) -> tuple[int, Iterator[tuple[int, bytes]]]:
        """A line at or before the block's first, and the lines from there on.

        A compressed file is decompressed from its start, so that a process goes on where its last block ended.
        """
        index = self._indexes[block.part]
        mark = max(bisect_right(range(0, index.count, _MARK_EVERY), block.start) - 1, 0)
        (part, position, lines), self._open = self._open, _NOTHING_OPEN
        least = 0 if _codec(part) else mark * _MARK_EVERY
        if part == block.part and least <= position <= block.start:
            return position, lines
        offset = index.offsets[mark] if index.offsets else 0
        return mark * _MARK_EVERY, _lines(self._store, block.part, offset)

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        try:
            for _, line in islice(_lines(self._store, self._paths[0], 0), PEEK_ITEMS):
                try:
                    yield parse_metadata(line)
                except ValueError:
                    continue
        except OSError:
            return

    def _index(self, path: str) -> Iterator[str]:
        """Counts and marks the lines of a file; yields their keys."""
        index = self._indexes[path] = _LineIndex()
        try:
            for offset, line in _lines(self._store, path, 0):
                if index.count % _MARK_EVERY == 0:
                    index.offsets.append(offset)
                yield self._key(path, index.count, _tolerant(line))
                index.count += 1
        except OSError as error:
            if error.errno is not None:
                raise
            index.problem = f"damaged: {' '.join(str(error).split())[:120]}"
            if index.count % _MARK_EVERY == 0:
                index.offsets.append(index.offsets[-1] if index.offsets else 0)
            yield f"{path}/{index.count}"
            index.count += 1

    def _record(self, path: str, position: int, line: bytes) -> SourceRecord:
        try:
            metadata = parse_metadata(line)
        except ValueError as error:
            return SourceRecord(f"{path}/{position}", problem=str(error).replace("metadata", "line"))
        key = self._key(path, position, metadata)
        if position in self._repeated.get(path, ()):
            return SourceRecord(f"{path}/{position}", problem=f"key '{key}' occurs before in {path}")
        return _with_text(self._reader.record(key, metadata))

    def _key(self, path: str, position: int, metadata: Mapping[str, Any]) -> str:
        names = (self.config.key,) if self.config.key is not None else KEY_COLUMNS
        stated = (clean_text(metadata.get(name)) for name in names)
        return next(filter(None, stated), f"{path}/{position}")


def open_texts(config: TextsConfig) -> PartedSource:
    """The source for the kind of file that is there. Raises SourceError, also if both kinds are."""
    listing = list_files(config.uri, (*_JSON_SUFFIXES, ".parquet"), config.include)
    tables = sum(entry.path.lower().endswith(".parquet") for entry in listing.files)
    if 0 < tables < len(listing.files):
        raise SourceError(
            f"{config.uri} holds both parquet and JSON lines: choose by include, for example ['*.parquet']"
        )
    return ParquetTextsSource(config) if tables else JsonlSource(config)


def _with_text(record: SourceRecord) -> SourceRecord:
    if record.caption or record.captions:
        return record
    return SourceRecord(record.key, problem="it has no text")


def _tolerant(line: bytes) -> dict[str, Any]:
    try:
        return parse_metadata(line)
    except ValueError:
        return {}


def _lines(store: Store, path: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their byte offsets, from `offset` on. Raises OSError on damaged compression."""
    rest = b""
    for chunk in _chunks(store, path, offset):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield offset, line
            offset += len(line) + 1
    if rest.strip():
        yield offset, rest


def _codec(path: str) -> str | None:
    return {"gz": "gzip", "zst": "zstd"}.get(path.rpartition(".")[2].lower())


def _chunks(store: Store, path: str, offset: int) -> Iterator[bytes]:
    """The decompressed content from `offset` on. Compressed files are decompressed up to there.

    Reads start at multiples of the chunk size wherever the caller starts, so that damage ends the content at one place.
    """
    codec = _codec(path)
    with store.open(path) as stream:
        if codec is None:
            stream.seek(offset)
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
            return
        position = 0
        with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec) as plain:
            while chunk := plain.read(_CHUNK_BYTES):
                position += len(chunk)
                if position > offset:
                    yield chunk[max(len(chunk) - (position - offset), 0) :]
