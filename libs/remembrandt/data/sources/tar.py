"""Walking a tar archive of image items: sequential, in small memory, and past damage.

The standard library's reader takes the first damaged header for the end of the archive. This one reports the damage
and goes on at the next intact header.
"""

import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_SCAN_BYTES = 1 << 20
_MAGIC_OFFSET = 257
_MARK_EVERY = 64
_MAX_NAME_BYTES = 1 << 20
_PLAIN_TYPE = ord("0")


@dataclass(frozen=True)
class Member:
    """A regular file: name, position of its first header, size, and content where it was wanted."""

    name: str
    offset: int
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Damage:
    """Bytes that could not be read as a tar; `name` is the member within whose content the archive ends."""

    offset: int
    reason: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    type: bytes


@dataclass
class TarItem:
    """Consecutive members with one key, or a problem.

    Attributes:
        key: path up to the first dot of its last component, as webdataset defines it.
        offset: where its first header starts.
        files: extension (lower case, all that follows the first dot) → content, None where it was not wanted.
    """

    key: str
    offset: int
    files: dict[str, bytes | None] = field(default_factory=dict)
    problem: str | None = None


@dataclass
class TarIndex:
    """How many items an archive has, and byte offsets of some of them, from which reading can start."""

    count: int = 0
    mark_items: list[int] = field(default_factory=list)
    mark_offsets: list[int] = field(default_factory=list)

    def seek(self, item: int) -> tuple[int, int]:
        """The closest marked item at or before `item`, and its byte offset."""
        mark = bisect_right(self.mark_items, item) - 1
        return (self.mark_items[mark], self.mark_offsets[mark]) if mark >= 0 else (0, 0)

    def add(self, item: TarItem) -> None:
        """Counts the next item."""
        may_mark = item.problem is None and (not self.mark_items or self.count - self.mark_items[-1] >= _MARK_EVERY)
        if may_mark:
            self.mark_items.append(self.count)
            self.mark_offsets.append(item.offset)
        self.count += 1


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` → (`a/b`, `seg.png`); extension in lower case, '' if the last component has no dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def walk_items(
    stream: BinaryIO, size: int, is_item_file: Callable[[str], bool], start: int = 0, with_data: bool = True
) -> Iterator[TarItem]:
    """Items from byte offset `start`, which must be an item's; files whose extension is not wanted are passed over.

    A damaged stretch is an item of its own with `problem` set, placed behind the item that it interrupts; the item in
    which the archive ends too early has `problem` set itself.
    """

    def is_wanted(name: str) -> bool:
        extension = split_key(name)[1]
        hidden = name.rpartition("/")[2].startswith(".")
        return bool(extension) and not hidden and is_item_file(extension)

    current: TarItem | None = None
    damages: list[TarItem] = []
    for event in walk_members(stream, size, is_wanted, start, with_data):
        if event.name is None:
            damages.append(TarItem(f"@{event.offset}", event.offset, problem=event.reason))
            continue
        key, extension = split_key(event.name)
        if current is None or key != current.key:
            yield from _finished(current, damages)
            current, damages = TarItem(key, event.offset), []
        if isinstance(event, Damage):
            current.problem = event.reason
        elif extension in current.files:
            current.problem = f"the tar holds two files '{event.name}'"
        current.files[extension] = event.data if isinstance(event, Member) else None
    yield from _finished(current, damages)


def walk_members(
    stream: BinaryIO, size: int, is_wanted: Callable[[str], bool], start: int = 0, with_data: bool = True
) -> Iterator[Member | Damage]:
    """Wanted regular files from byte offset `start` of an archive of `size` bytes, and damage between them."""
    position = start
    first = start
    overrides: dict[str, str] = {}
    while position < size:
        stream.seek(position)
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        try:
            info = _plain_header(header) or _any_header(header)
        except tarfile.HeaderError:
            found = _next_header(stream, position + _BLOCK, size)
            yield Damage(position, "no tar archive" if position == 0 and found >= size else "a damaged tar header")
            position = first = found
            overrides = {}
            continue
        content = position + _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if content + info.size > size:
                yield Damage(first, "truncated: the tar ends within a header")
                return
            extra = stream.read(min(info.size, _MAX_NAME_BYTES))
            if info.type != tarfile.XGLTYPE:
                overrides |= {"path": _c_string(extra)} if info.type == tarfile.GNUTYPE_LONGNAME else _pax(extra)
            position = content + _padded(info.size)
            continue
        name = overrides.get("path", info.name)
        length = int(overrides["size"]) if overrides.get("size", "").isdigit() else info.size
        overrides = {}
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        has_content = is_file or info.type == tarfile.GNUTYPE_SPARSE or info.type not in tarfile.SUPPORTED_TYPES
        if has_content and content + length > size:
            yield Damage(first, f"truncated: the tar ends within '{_clean(name)}'", _clean(name))
            return
        if is_file and is_wanted(name):
            data = stream.read(length) if with_data else None
            yield Member(_clean(name), first, length, data)
        position = first = content + (_padded(length) if has_content else 0)


def _finished(item: TarItem | None, damages: list[TarItem]) -> Iterator[TarItem]:
    if item is not None:
        yield item
    yield from damages


def _next_header(stream: BinaryIO, position: int, size: int) -> int:
    """Offset of the next intact header at or after `position`, or `size`."""
    while position < size:
        stream.seek(position)
        chunk = stream.read(_SCAN_BYTES)
        if not chunk:
            return size
        found = chunk.find(b"ustar")
        while found >= 0:
            start = found - _MAGIC_OFFSET
            if start >= 0 and start % _BLOCK == 0 and _is_header(chunk[start : start + _BLOCK]):
                return position + start
            found = chunk.find(b"ustar", found + 1)
        position += _SCAN_BYTES
    return size


def _is_header(block: bytes) -> bool:
    try:
        _any_header(block)
    except tarfile.HeaderError:
        return False
    return True


def _any_header(block: bytes) -> _Header:
    """Raises tarfile.HeaderError if the checksum or a number is wrong."""
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.size < 0:
        raise tarfile.HeaderError("negative size")
    return _Header(info.name, info.size, info.type)


def _plain_header(block: bytes) -> _Header | None:
    """The header of an ordinary file with a short name, else None; several times as fast as the general parser."""
    if len(block) != _BLOCK or block[156] != _PLAIN_TYPE or block[345]:
        return None
    try:
        size = int(block[124:135], 8)
        checksum = int(block[148:154], 8)
    except ValueError:
        return None
    if size < 0 or checksum != sum(block) - sum(block[148:156]) + 256:
        return None
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _Header(name, size, tarfile.REGTYPE) if not name.endswith("/") else None


def _pax(data: bytes) -> dict[str, str]:
    """Records `length key=value` of a pax header, each with a line end; what does not parse is left out."""
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return {key: value for key, value in records.items() if key in ("path", "size")}


def _c_string(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _clean(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix("./")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
