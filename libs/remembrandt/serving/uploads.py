"""Pictures from clients: checked whole before anything is kept.

A file is accepted if it is one image of an allowed format, within the limits, and nothing else beside: bytes behind the
end of an image are how a file is two things at once.
"""

import base64
import binascii
import bz2
import gzip
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, TypeVar

from PIL import Image

from remembrandt.data.decode import DecodeError, decode_image
from remembrandt.data.sources.images import IMAGE_EXTENSIONS
from remembrandt.serving.config import UploadConfig
from remembrandt.serving.errors import TooLargeError, UploadError
from remembrandt.storage import Store

_COMPANIONS = ("txt", "json")
_MAX_COMPANION, _MAX_COMPANIONS = 100_000, 100_000_000
_MAX_HEADER, _MAX_GLOBALS = 500_000, 100
_MAX_XZ_MEMORY = 100_000_000
# A picture, its caption, its metadata, and a folder of its own.
_MEMBERS_AN_IMAGE = 4
_MAX_NAME, _MAX_PATH = 180, 1_000
_CHUNK = 1 << 20
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class UploadedImage:
    """One picture of an upload, checked."""

    name: str
    data: bytes
    caption: str = ""
    metadata: bytes = b""


def check_image(data: bytes, config: UploadConfig, name: str = "the image") -> Image.Image:
    """Decodes an uploaded picture.

    Raises:
        TooLargeError: too many bytes or pixels.
        UploadError: not an image, truncated, or more than an image.
    """
    if len(data) > config.max_image_bytes:
        raise TooLargeError(f"{name} has {len(data):,} bytes, and {config.max_image_bytes:,} are accepted: shrink it")
    try:
        image = decode_image(data, config.decode)
    except DecodeError as error:
        if str(error).startswith("too large"):
            raise TooLargeError(f"{name} is {error}: shrink it") from None
        raise UploadError(f"{name} is not accepted: {error}") from None
    end = image_end(data)
    if end is not None and end < len(data) and data[end:].strip(b"\0"):
        extra = len(data) - end
        raise UploadError(f"{name} has {extra:,} bytes behind the end of its image: export it anew without them")
    return image


def image_end(data: bytes) -> int | None:
    """Where the image in a file ends; None for formats that do not say."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_end(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_end(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif_end(data)
    if data.startswith(b"RIFF") and len(data) >= 8:
        size: int = struct.unpack_from("<I", data, 4)[0]
        return 8 + size + size % 2
    if data.startswith(b"BM") and len(data) >= 6:
        declared: int = struct.unpack_from("<I", data, 2)[0]
        return declared or None
    return None


def decode_base64(text: str, config: UploadConfig, name: str = "the image") -> bytes:
    """The bytes of base64 or of a `data:` URI, checked to be a picture.

    Raises:
        UploadError, TooLargeError: as `check_image`.
    """
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UploadError(f"{name} is not base64") from None
    check_image(data, config, name)
    return data


def read_files(
    files: Sequence[tuple[str, BinaryIO]], captions: Sequence[str], config: UploadConfig
) -> Iterator[UploadedImage]:
    """Pictures that were sent one by one; `captions` one a picture, or none.

    Raises:
        UploadError, TooLargeError: the first one that is not accepted, or too many of them.
    """
    if captions and len(captions) != len(files):
        raise UploadError(f"{len(captions)} captions for {len(files)} images: send one a picture, or none")
    if len(files) > config.max_images:
        raise _too_many(config)
    taken: set[str] = set()
    pixels = 0
    for number, (given, file) in enumerate(files):
        name = _safe_name(PurePosixPath(given.replace("\\", "/")).name or f"{number:06d}", taken)
        file.seek(0)
        data = file.read(config.max_image_bytes + 1)
        pixels = _together(pixels, check_image(data, config, f"'{name}'"), config)
        yield UploadedImage(name, data, captions[number] if captions else "")


def read_archive(file: BinaryIO, config: UploadConfig) -> Iterator[UploadedImage]:
    """Pictures of a tar (plain, gz, bz2 or xz), with `name.txt` and `name.json` beside them.

    Raises:
        UploadError: not a tar, a link or device, a name that leads out of it, a file that is not accepted.
        TooLargeError: too many files, bytes or pixels.
    """
    companions: dict[str, bytes] = {}
    # Companions may come behind their picture, so they are read first; nothing else is kept in memory.
    beside = 0
    for path, data in _members(file, config, companions_only=True):
        companions[path], beside = data, beside + len(data)
        if beside > _MAX_COMPANIONS:
            raise TooLargeError(
                f"the archive has more than {_MAX_COMPANIONS:,} bytes of captions and metadata: split it"
            )
    taken: set[str] = set()
    count = pixels = 0
    for path, data in _members(file, config, companions_only=False):
        count += 1
        if count > config.max_images:
            raise _too_many(config)
        pixels = _together(pixels, check_image(data, config, f"'{path}'"), config)
        stem = path.rpartition(".")[0]
        text = _text(companions.get(f"{stem}.txt", b""), f"{stem}.txt")
        metadata = companions.get(f"{stem}.json", b"")
        _check_metadata(metadata, f"{stem}.json")
        yield UploadedImage(_safe_name(path.replace("/", "_"), taken), data, text, metadata)
    if not count:
        raise UploadError("the archive holds no image")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can name halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stage(images: Iterator[UploadedImage], store: Store) -> tuple[int, int]:
    """Writes checked pictures where a build reads them; returns how many, and their bytes."""
    count = size = 0
    for image in images:
        stem = image.name.rpartition(".")[0]
        store.write(image.name, image.data)
        if image.caption:
            store.write(f"{stem}.txt", image.caption.encode())
        if image.metadata:
            store.write(f"{stem}.json", image.metadata)
        count, size = count + 1, size + len(image.data)
    return count, size


class _Unpacked:
    """The bytes of a tar, unpacked as they are read, and no more of them than are accepted.

    `tarfile` reads the headers of a member whole, however long they are: it is stopped there.
    """

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._most = self._left = most
        self._header_left: int | None = _MAX_HEADER  # opening a tar reads the first one
        file.seek(0)
        start = file.read(6)
        file.seek(0)
        self._read: Callable[[int], bytes] = file.read
        if start.startswith(b"\x1f\x8b"):
            self._read = gzip.GzipFile(fileobj=file, mode="rb").read  # else it takes the mode of an upload's file: w+b
        elif start.startswith(b"BZh"):
            self._read = bz2.BZ2File(file).read
        elif start == b"\xfd7zXZ\0":
            self._read = partial(_read_xz, file, lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY))

    def header(self, read: Callable[[], ResultT]) -> ResultT:
        """What `read` reads is the header of a member."""
        self._header_left = _MAX_HEADER
        found = read()
        self._header_left = None
        return found

    def read(self, size: int) -> bytes:
        """As of a file."""
        data = self._read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError(f"the archive unpacks to more than {self._most:,} bytes: split it")
        if self._header_left is not None:
            self._header_left -= len(data)
            if self._header_left < 0:
                raise TooLargeError(
                    f"a file of the archive has more than {_MAX_HEADER:,} bytes of headers: pack it anew"
                )
        return data


def _read_xz(file: BinaryIO, inner: lzma.LZMADecompressor, size: int) -> bytes:
    """As `LZMAFile.read`, which would keep as large a dictionary as the file asks for."""
    while not inner.eof:
        more = file.read(_CHUNK) if inner.needs_input else b""
        if inner.needs_input and not more:
            raise EOFError("it ends early")
        if found := inner.decompress(more, size):
            return found
    return b""


def _members(file: BinaryIO, config: UploadConfig, *, companions_only: bool) -> Iterator[tuple[str, bytes]]:
    unpacked = _Unpacked(file, config.max_unpacked_bytes)
    count = 0
    try:
        with tarfile.open(fileobj=unpacked, mode="r|") as archive:  # type: ignore[call-overload]  # it only reads
            while (member := unpacked.header(archive.next)) is not None:
                archive.members = []  # it would remember all of them
                count += 1
                if count > (most_members := _MEMBERS_AN_IMAGE * config.max_images):
                    raise TooLargeError(f"the archive has more than {most_members:,} files and folders: split it")
                if len(archive.pax_headers) > _MAX_GLOBALS:  # every member gets a copy of them
                    raise UploadError("the archive has too many headers that are for all of its files: pack it anew")
                if member.isdir():
                    continue
                path = _safe_path(member)
                extension = path.rpartition(".")[2].lower()
                if extension in _COMPANIONS:
                    wanted, most = companions_only, _MAX_COMPANION
                elif extension in IMAGE_EXTENSIONS:
                    wanted, most = not companions_only, config.max_image_bytes
                else:
                    raise UploadError(f"the archive holds '{path}', which is neither an image nor .txt or .json")
                data = _read_member(archive, member, most)
                if wanted:
                    yield path, data
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise UploadError(f"the archive cannot be read as a tar: {' '.join(str(error).split())[:120]}") from None


def _safe_path(member: tarfile.TarInfo) -> str:
    if len(member.name) > _MAX_PATH:
        raise UploadError(f"the archive holds a file whose path is longer than {_MAX_PATH:,} characters: shorten it")
    if not member.isreg() or member.issparse():
        raise UploadError(f"the archive holds '{member.name}', which is a link or a device: send files only")
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if member.name.startswith("/") or ".." in parts or ":" in member.name or "\0" in member.name:
        raise UploadError(f"the archive holds '{member.name}', which leads out of it")
    return "/".join(part for part in parts if part != ".")


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise TooLargeError(f"'{member.name}' has {member.size:,} bytes, and {most:,} are accepted: shrink it")
    file = archive.extractfile(member)
    assert file is not None
    data = file.read(most + 1)
    if len(data) != member.size:
        raise UploadError(f"the archive is truncated in '{member.name}'")
    return data


def _safe_name(name: str, taken: set[str]) -> str:
    """A file name of plain characters, with an extension that a build reads; each once."""
    stem, _, extension = name.rpartition(".")
    if extension.lower() not in IMAGE_EXTENSIONS:
        stem, extension = name, "png"  # a name says nothing of the content, which is checked by itself
    plain = "".join(c if c.isalnum() or c in "-_ " else "_" for c in stem)
    # File systems count bytes, of which a character has up to four.
    plain = plain.encode()[:_MAX_NAME].decode(errors="ignore").strip() or "image"
    found, number = f"{plain}.{extension.lower()}", 1
    # Companions go by the stem, so that a.png and a.jpg would share theirs.
    while found.rpartition(".")[0] in taken:
        number += 1
        found = f"{plain}-{number}.{extension.lower()}"
    taken.add(found.rpartition(".")[0])
    return found


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UploadError(f"'{name}' is not UTF-8 text") from None


def _check_metadata(data: bytes, name: str) -> None:
    if not data:
        return
    try:
        values = json.loads(data)
        if not isinstance(values, dict) or not is_unicode(json.dumps(values, ensure_ascii=False)):
            raise ValueError
    except (ValueError, RecursionError):
        raise UploadError(f"'{name}' is not a JSON object of UTF-8 text") from None


def _together(pixels: int, image: Image.Image, config: UploadConfig) -> int:
    """The pixels of an upload, with those of one more image."""
    pixels += image.width * image.height
    if pixels > config.max_pixels:
        raise TooLargeError(f"the images have more than {config.max_pixels:,} pixels together: send them in several")
    return pixels


def _too_many(config: UploadConfig) -> TooLargeError:
    return TooLargeError(f"more than {config.max_images:,} images in one request: send them in several")


def _png_end(data: bytes) -> int | None:
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + size
        if kind == b"IEND":
            return at
    return None


def _jpeg_end(data: bytes) -> int | None:
    """Walks the segments: thumbnails inside APP segments have end markers of their own."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:
            # Entropy-coded data: 0xFF is followed by 0 or a restart marker until the next segment.
            while True:
                at = data.find(b"\xff", at)
                if at < 0 or at + 1 >= len(data):
                    return None
                if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
                    break
                at += 2
    return at + 2 if data[at : at + 2] == b"\xff\xd9" else None


def _gif_end(data: bytes) -> int | None:
    """Walks the blocks of a GIF."""
    flags = data[10] if len(data) > 13 else 0
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while at < len(data):
        kind = data[at]
        if kind == 0x3B:
            return at + 1
        if kind == 0x21:
            at += 2
        elif kind == 0x2C and at + 10 <= len(data):
            local = data[at + 9]
            at += 10 + (3 << ((local & 7) + 1) if local & 0x80 else 0) + 1
        else:
            return None
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return None
