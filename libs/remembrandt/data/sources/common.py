"""What all sources share: configuration, metadata → record, exclusions, cutting into blocks."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.store import open_store, split_uri

DEFAULT_FIELDS = ("artist", "cls", "entity", "source", "split", "style")
PEEK_ITEMS = 64
_LICENCE_KEYS = ("licence", "license")


class ExcludeConfig(Config):
    """Items that are left out.

    `file` (path or URI) holds one entry a line: a key, or `group:NAME`, `licence:NAME`, `key:KEY`; `#` starts a comment
    line.
    """

    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    file: str | None = None


class BaseSourceConfig(Config):
    """Keys of every kind of source.

    Attributes:
        uri: folder, or one file of it; a path, `file://` or `s3://`.
        include: glob patterns on paths below the folder (`*` also matches `/`); empty takes every file.
        exclude: items that are left out.
        limit: lists the first so many items of the sorted source only; excluded ones count.
        fields: metadata keys that become string columns. Default: those of artist, cls, entity, source, split and style
            that the first 64 items of the source's first part have.
        caption_keys: metadata keys that may hold the caption; the first one with text is taken.
        licence: of items whose metadata state none.
    """

    uri: str
    include: tuple[str, ...] = ()
    exclude: ExcludeConfig = ExcludeConfig()
    limit: int | None = Field(None, ge=1)
    fields: tuple[str, ...] | None = None
    caption_keys: tuple[str, ...] = ("caption", "TEXT", "text", "top_caption")
    licence: str = ""


@dataclass(frozen=True)
class MetadataReader:
    """Turns an item's metadata (a JSON object, a table row) into a record."""

    caption_keys: tuple[str, ...]
    licence: str
    fields: tuple[str, ...]

    def record(self, key: str, metadata: Mapping[str, Any], *, text: str = "", **extras: Any) -> SourceRecord:
        """`text` (a caption file) comes before captions in the metadata; `extras` are further record attributes."""
        found = [clean_text(metadata.get(name)) for name in self.caption_keys]
        caption = clean_text(text) or next(filter(None, found), "")
        stated = (clean_text(metadata.get(name)) for name in _LICENCE_KEYS)
        return SourceRecord(
            key=key,
            caption=caption,
            captions=_captions(metadata.get("captions"), caption),
            group=clean_text(metadata.get("group")),
            licence=next(filter(None, stated), self.licence),
            fields={name: clean_text(metadata.get(name)) for name in self.fields},
            **extras,
        )


@dataclass(frozen=True)
class Exclusions:
    """Keys, groups and licences whose items are left out."""

    keys: frozenset[str]
    groups: frozenset[str]
    licences: frozenset[str]

    @classmethod
    def load(cls, config: ExcludeConfig) -> "Exclusions":
        """Raises SourceError if the file cannot be read."""
        listed: dict[str, set[str]] = {
            "key": set(config.keys),
            "group": set(config.groups),
            "licence": set(config.licences),
        }
        for line in _lines(config.file) if config.file else ():
            kind, separator, name = line.partition(":")
            if separator and kind in listed:
                listed[kind].add(name.strip())
            else:
                listed["key"].add(line)
        return cls(frozenset(listed["key"]), frozenset(listed["group"]), frozenset(listed["licence"]))

    def drops(self, record: SourceRecord) -> bool:
        """Whether the record is left out. A record without group is its own group."""
        return (
            record.key in self.keys
            or (record.group or record.key) in self.groups
            or (record.licence in self.licences and record.problem is None)
        )

    def __bool__(self) -> bool:
        return bool(self.keys or self.groups or self.licences)

    def describe(self) -> list[list[str]]:
        """Sorted content, for the fingerprint."""
        return [sorted(self.keys), sorted(self.groups), sorted(self.licences)]


class PartedSource(ABC):
    """A source made of named parts with numbered items; subclasses count and read them."""

    has_embeddings = False

    def __init__(self, config: BaseSourceConfig, content_digest: str) -> None:
        self.config = config
        self._exclusions = Exclusions.load(config.exclude)
        self._content_digest = content_digest
        self._reader = MetadataReader(config.caption_keys, config.licence, self._choose_fields())

    @property
    def field_names(self) -> tuple[str, ...]:
        """Sorted names of the extra string columns."""
        return self._reader.fields

    def fingerprint(self) -> str:
        """SHA-256 over sorted names, sizes and identities, and over what the configuration selects from them."""
        selection = [self._content_digest, self._exclusions.describe(), self.config.limit, self.field_names]
        return hashlib.sha256(json.dumps(selection).encode()).hexdigest()

    def blocks(self, block_size: int) -> list[SourceBlock]:
        """Blocks of at most `block_size` items, in order.

        Raises:
            SourceError: there are no items, or keys are not unique.
        """
        assert block_size > 0
        blocks = cut_blocks(self._parts(), block_size, self.config.limit)
        if not blocks:
            raise SourceError(f"{self.config.uri} holds no items: check uri and include of the source")
        return blocks

    def read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        """The items of one block in order, without the excluded ones."""
        for record in self._read(block):
            if not self._exclusions.drops(record):
                yield record

    @abstractmethod
    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        """Parts in order: name, and boundaries 0 < … < number of items at which a block should rather end."""

    @abstractmethod
    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]: ...

    @abstractmethod
    def _peek(self) -> Iterator[Mapping[str, Any]]:
        """Metadata of the first items of the first part."""

    def _choose_fields(self) -> tuple[str, ...]:
        if self.config.fields is not None:
            return tuple(sorted(set(self.config.fields)))
        seen = {name for metadata in self._peek() for name in DEFAULT_FIELDS if clean_text(metadata.get(name))}
        return tuple(sorted(seen))


def cut_blocks(parts: Iterable[tuple[str, Sequence[int]]], block_size: int, limit: int | None) -> list[SourceBlock]:
    """Blocks of at most `block_size` items that end, where that is possible, at one of a part's boundaries; pure."""
    blocks: list[SourceBlock] = []
    left = math.inf if limit is None else limit
    for part, boundaries in parts:
        start = previous = 0
        for boundary in boundaries:
            stop = int(min(boundary, left))
            if stop - start > block_size and previous > start:
                blocks.append(SourceBlock(part, start, previous))
                start = previous
            while stop - start > block_size:
                blocks.append(SourceBlock(part, start, start + block_size))
                start += block_size
            previous = stop
        if previous > start:
            blocks.append(SourceBlock(part, start, previous))
        left -= previous
        if left <= 0:
            break
    return blocks


def key_digests(keys: Iterable[str]) -> NDArray[np.uint64]:
    """64-bit digests of keys: eight bytes a key are what a check for duplicates may cost."""
    packed = b"".join(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys)
    return np.frombuffer(packed, dtype=np.uint64)


def repeated_keys(parts: Sequence[tuple[str, NDArray[np.uint64]]], remedy: str) -> dict[str, frozenset[int]]:
    """Positions, by part, of items whose key occurred earlier in the same part.

    Raises:
        SourceError: two parts share a key.
    """
    if not parts:
        return {}
    digests_N = np.concatenate([digests for _, digests in parts])
    starts = np.cumsum([0] + [len(digests) for _, digests in parts])
    order = np.argsort(digests_N, kind="stable")
    same = digests_N[order][1:] == digests_N[order][:-1]
    repeated: dict[str, set[int]] = {}
    for earlier, later in zip(order[:-1][same], order[1:][same], strict=True):
        first, second = (int(np.searchsorted(starts, item, side="right")) - 1 for item in (earlier, later))
        position = int(later - starts[second])
        if first != second:
            raise SourceError(
                f"item {int(earlier - starts[first])} of {parts[first][0]} and item {position} of {parts[second][0]} "
                f"have the same key, but keys must be unique: {remedy}"
            )
        repeated.setdefault(parts[second][0], set()).add(position)
    return {part: frozenset(positions) for part, positions in repeated.items()}


def clean_text(value: Any) -> str:
    """A metadata value as text that every store accepts: '' for None, NaN, lists and objects."""
    if isinstance(value, str):
        text = value.strip()
        return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return ""
    return str(value)


def parse_metadata(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError with a short reason."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its metadata is not valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError("its metadata is not a JSON object")
    return value


def decode_text(data: bytes) -> str:
    """A caption file's text."""
    return data.decode("utf-8-sig", "replace").strip()


def _captions(value: Any, caption: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return ()
    texts = (clean_text(item) for item in value)
    return tuple(dict.fromkeys(text for text in texts if text and text != caption))


def _lines(uri: str) -> list[str]:
    parent, name = split_uri(uri)
    try:
        text = decode_text(open_store(parent).read(name))
    except StorageError as error:
        raise SourceError(f"exclude.file: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
