"""Rows of NumPy arrays, read as a stream: from `.npy` files by range, from `.npz` archives forwards."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from remembrandt.data.sources.tables import DamagedFileError
from remembrandt.storage.store import Store

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of a stored array, and where its data start."""

    shape: tuple[int, ...]
    dtype: np.dtype
    data_offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> ArrayHeader:
    """Parses the start of a `.npy` stream. Raises DamagedFileError."""
    try:
        version = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (ValueError, zlib.error, zipfile.BadZipFile, EOFError) as error:
        raise DamagedFileError(f"damaged array file: {' '.join(str(error).split())[:120]}") from error
    if dtype.hasobject or not shape or (is_fortran and len(shape) > 1):
        raise DamagedFileError(f"an array of shape {shape}, type {dtype} cannot be read by rows")
    return ArrayHeader(tuple(shape), dtype, stream.tell())


def read_npy_header(store: Store, path: str) -> ArrayHeader:
    """Header of a `.npy` file. Raises DamagedFileError."""
    with store.open(path) as stream:
        return read_header(stream)


def read_npy_rows(store: Store, path: str, start: int, stop: int) -> Iterator[NDArray[np.generic]]:
    """Rows `start` to `stop` of a `.npy` file, a range read. Raises DamagedFileError where the file ends too early."""
    with store.open(path) as stream:
        header = read_header(stream)
        stream.seek(header.data_offset + start * header.row_bytes)
        for rows in _chunks(stream, header, stop - start):
            yield from rows


class NpzReader:
    """Some arrays of a `.npz` archive side by side, forwards only: its members are compressed as a whole."""

    def __init__(self, store: Store, path: str, names: Sequence[str]) -> None:
        """Raises DamagedFileError if it is no intact archive with these arrays."""
        self._stream = store.open(path)
        try:
            archive = zipfile.ZipFile(self._stream)
            self._members = [archive.open(f"{name}.npy") for name in names]
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            self._stream.close()
            raise DamagedFileError(f"damaged npz file: {error}") from error
        except KeyError:
            self._stream.close()
            present = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
            raise DamagedFileError(f"it holds {present}, but {', '.join(names)} are needed") from None
        self.headers = [read_header(member) for member in self._members]
        self.position = 0

    def skip_to(self, row: int) -> None:
        """Moves forwards. Raises DamagedFileError."""
        assert row >= self.position
        try:
            for member, header in zip(self._members, self.headers, strict=True):
                left = (row - self.position) * header.row_bytes
                while left > 0:
                    left -= len(_exactly(member, min(left, _CHUNK_BYTES)))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DamagedFileError(f"damaged npz file: {error}") from error
        self.position = row

    def rows(self, stop: int) -> Iterator[tuple[NDArray[np.generic], ...]]:
        """The rows from the present position to `stop`, one entry of every array at a time. Raises DamagedFileError."""
        count = stop - self.position
        streams = [
            self._entries(member, header, count) for member, header in zip(self._members, self.headers, strict=True)
        ]
        for entries in zip(*streams, strict=True):
            self.position += 1
            yield entries

    def close(self) -> None:
        self._stream.close()

    @staticmethod
    def _entries(stream: IO[bytes], header: ArrayHeader, count: int) -> Iterator[NDArray[np.generic]]:
        for chunk in _chunks(stream, header, count):
            yield from chunk


def npz_arrays(store: Store, path: str) -> list[str]:
    """Names of an archive's arrays. Raises DamagedFileError."""
    try:
        with store.open(path) as stream, zipfile.ZipFile(stream) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, EOFError) as error:
        raise DamagedFileError(f"damaged npz file: {error}") from error


def _chunks(stream: IO[bytes], header: ArrayHeader, count: int) -> Iterator[NDArray[np.generic]]:
    """`count` entries in arrays of a few MiB. Raises DamagedFileError."""
    row_bytes = max(header.row_bytes, 1)
    per_chunk = max(1, min(_CHUNK_BYTES // row_bytes, 1024))
    while count > 0:
        rows = min(count, per_chunk)
        try:
            data = stream.read(rows * header.row_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DamagedFileError(f"damaged array: {error}") from error
        whole = len(data) // row_bytes
        yield np.frombuffer(data, header.dtype, count=whole * row_bytes // header.dtype.itemsize).reshape(
            whole, *header.shape[1:]
        )
        if whole < rows:
            raise DamagedFileError("truncated: the array ends too early")
        count -= rows


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("it ends too early")
    return data
