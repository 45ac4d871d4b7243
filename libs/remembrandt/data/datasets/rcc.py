"""Reads Qt's binary resource files (.rcc): a tree of named nodes over zlib- or zstd-compressed data.

Source of the format: Qt's rcc tool and QResource, versions 1 to 3. All integers are big-endian.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from remembrandt.data.datasets.packages import require_module
from remembrandt.errors import SourceError

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4


def read_rcc(file: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file in the resource.

    Raises:
        SourceError: not a resource file, or damaged.
    """
    data = file.read_bytes()
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4siiii", data)
        if magic != b"qres":
            raise SourceError(f"{file} is not a Qt resource file")
        yield from _Tree(data, version, tree, contents, names).walk(0, "")
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise SourceError(f"{file} is damaged ({error}): remove it and fetch its package again") from error


class _Tree:
    def __init__(self, data: bytes, version: int, tree: int, contents: int, names: int) -> None:
        self._data, self._tree, self._contents, self._names = data, tree, contents, names
        # Since version 2 a node ends with the time of its last change.
        self._node_bytes = 22 if version >= 2 else 14

    def walk(self, number: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        node = self._tree + number * self._node_bytes
        name_offset, flags = struct.unpack_from(">IH", self._data, node)
        path = f"{prefix}/{self._name(name_offset)}" if number else prefix
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", self._data, node + 6)
            for child in range(first, first + count):
                yield from self.walk(child, path)
            return
        _, _, offset = struct.unpack_from(">HHI", self._data, node + 6)
        yield path.lstrip("/"), self._content(self._contents + offset, flags)

    def _name(self, offset: int) -> str:
        start = self._names + offset
        (length,) = struct.unpack_from(">H", self._data, start)
        return self._data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")

    def _content(self, start: int, flags: int) -> bytes:
        (size,) = struct.unpack_from(">I", self._data, start)
        data = self._data[start + 4 : start + 4 + size]
        if flags & _ZLIB:
            return zlib.decompress(data[4:])
        if flags & _ZSTD:
            plain: bytes = require_module("zstandard").ZstdDecompressor().decompressobj().decompress(data)
            return plain
        return data
