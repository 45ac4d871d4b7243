"""Real files to read: pictures, shards, folders."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remembrandt.data.records import Source, SourceRecord
from remembrandt.storage.store import open_store


def _picture(number: int, format: str = "JPEG", size: tuple[int, int] = (48, 36)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def _tar(members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _put(uri: str | Path, files: dict[str, bytes]) -> str:
    store = open_store(uri)
    for path, data in files.items():
        store.write(path, data)
    return str(uri)


def _read_all(source: Source, block_size: int = 1000) -> list[SourceRecord]:
    return [record for block in source.blocks(block_size) for record in source.read(block)]


def _keys(records: Sequence[SourceRecord]) -> list[str]:
    return [record.key for record in records]


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture(number, format, size): an encoded image, different for each number."""
    return _picture


@pytest.fixture
def tar() -> Callable[..., bytes]:
    """tar([(name, content)…]): a tar archive."""
    return _tar


@pytest.fixture
def put() -> Callable[..., str]:
    """put(uri, {path: content}): writes files, returns the URI."""
    return _put


@pytest.fixture
def read_all() -> Callable[..., list[SourceRecord]]:
    """read_all(source, block_size): every record in order."""
    return _read_all


@pytest.fixture
def keys() -> Callable[..., list[str]]:
    """keys(records)."""
    return _keys
