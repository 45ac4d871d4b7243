"""Storage locations: a tree of immutable files below one URI, with one atomic compare-and-swap.

`file://` URIs, plain paths and `s3://` URIs (any S3 server; endpoint and credentials come from the usual AWS
environment) behave alike: a write is whole or absent, and a pointer file moves only from the value that was read.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyarrow.fs import FileSystem

from remembrandt.errors import ConfigError, StorageError

CHUNK_BYTES = 8 * 1024 * 1024


class ConflictError(StorageError):
    """A pointer that somebody else has moved since it was read."""


@dataclass(frozen=True, order=True)
class Entry:
    """One file of a listing. `identity` changes whenever the content may have changed (mtime and inode, or ETag)."""

    path: str
    bytes: int
    identity: str


class Store(ABC):
    """Files below one URI; `path` arguments are relative, with forward slashes. Picklable."""

    uri: str

    @abstractmethod
    def child(self, *parts: str) -> "Store":
        """The store rooted at a folder below this one."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file. Raises StorageError (naming the file) if it cannot be read."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A seekable stream for reading."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes the file whole or not at all, replacing any old one."""

    @abstractmethod
    def upload(self, source: Path, path: str) -> None:
        """Copies a local file here, whole or not at all."""

    @abstractmethod
    def download(self, path: str, target: Path) -> None:
        """Copies a file to a local path, whole or not at all."""

    @abstractmethod
    def files(self, prefix: str = "") -> list[Entry]:
        """All files whose folder is `prefix` or lies below it, sorted by path; empty if there are none."""

    @abstractmethod
    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the file is there."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes a file; one that is absent is no error."""

    @abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Removes every file below a folder."""

    @abstractmethod
    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        """Content and tag of a pointer file, for `replace`; None if it is absent."""

    @abstractmethod
    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        """Compare-and-swap: writes only if the tag is still `expected` (None: only if absent).

        Raises:
            ConflictError: the file has changed since `read_tagged`.
        """

    @abstractmethod
    def local_path(self, path: str = "") -> Path | None:
        """Where the file lies on this machine, or None for remote stores."""

    @abstractmethod
    def lance(self, path: str) -> tuple[str, dict[str, str]]:
        """URI and storage options under which Lance reads and writes the same place."""

    @abstractmethod
    def arrow(self) -> tuple[FileSystem, str]:
        """Arrow's file system for this place, and the path of this store on it: what Ray Train takes."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raises StorageError, saying why, unless a small file can be written and removed here."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """The file in pieces of 8 MiB."""
        with self.open(path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def sha256(self, path: str) -> str:
        """Hex digest of the file's content."""
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()


def open_store(uri: str | Path) -> Store:
    """The store for a path, `file://` or `s3://bucket/prefix` URI.

    Raises:
        ConfigError: another scheme.
    """
    from remembrandt.storage.local import LocalStore
    from remembrandt.storage.s3 import S3Store

    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(Path(text))
    if scheme == "file":
        return LocalStore(Path(rest))
    if scheme == "s3":
        return S3Store.from_uri(text)
    raise ConfigError(f"cannot use '{text}': the scheme must be file:// or s3://, or a plain path")


def split_uri(uri: str | Path) -> tuple[str, str]:
    """Parent URI and last part: `s3://b/databases/emoji` → (`s3://b/databases`, `emoji`)."""
    parent, _, name = str(uri).rstrip("/").rpartition("/")
    return parent or ("/" if str(uri).startswith("/") else "."), name
