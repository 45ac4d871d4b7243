"""Files on this machine, or on a file system that every node mounts."""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyarrow.fs import FileSystem, LocalFileSystem

from remembrandt.errors import StorageError
from remembrandt.storage.store import ConflictError, Entry, Store

_TEMPORARY = ".tmp-"


class LocalStore(Store):
    """A folder. Writes go to a temporary name first, then `os.replace`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)

    def child(self, *parts: str) -> "LocalStore":
        return LocalStore(self.root.joinpath(*parts))

    def read(self, path: str) -> bytes:
        with _explained("read", self.root / path):
            return (self.root / path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        with _explained("read", self.root / path):
            return (self.root / path).open("rb")

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path) as temporary, temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def upload(self, source: Path, path: str) -> None:
        with self._temporary(path) as temporary:
            shutil.copyfile(source, temporary)

    def download(self, path: str, target: Path) -> None:
        with self.open(path):
            LocalStore(target.parent).upload(self.root / path, target.name)

    def files(self, prefix: str = "") -> list[Entry]:
        top = self.root / prefix
        above = len(str(self.root).rstrip("/")) + 1
        entries = []
        with _explained("list", top):
            for folder, _, names in os.walk(top, onerror=_raise_unless_absent):
                for name in names:
                    if name.startswith(_TEMPORARY):
                        continue
                    file = f"{folder.rstrip('/')}/{name}"
                    try:
                        stat = Path(file).stat()
                    except FileNotFoundError:  # deleted meanwhile, or a link that leads nowhere
                        continue
                    identity = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
                    entries.append(Entry(file[above:], stat.st_size, identity))
        return sorted(entries)

    def folders(self, prefix: str = "") -> list[str]:
        top = self.root / prefix
        with _explained("list", top):
            return sorted(child.name for child in top.iterdir() if child.is_dir()) if top.is_dir() else []

    def exists(self, path: str) -> bool:
        with _explained("read", self.root / path):
            return (self.root / path).is_file()

    def delete(self, path: str) -> None:
        with _explained("delete", self.root / path):
            (self.root / path).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        with _explained("delete", self.root / prefix):
            if (self.root / prefix).exists():
                shutil.rmtree(self.root / prefix)

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        if not self.exists(path):
            return None
        data = self.read(path)
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, path: str, data: bytes, expected: str | None) -> None:
        file = self.root / path
        with _explained("write", file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with (file.parent / f".{file.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                now = self.read_tagged(path)
                if (now and now[1]) != expected:
                    raise ConflictError(f"{file} was changed by somebody else meanwhile: look at it, then try again")
                self.write(path, data)

    def local_path(self, path: str = "") -> Path:
        return self.root / path

    def lance(self, path: str) -> tuple[str, dict[str, str]]:
        return str(self.root / path), {}

    def arrow(self) -> tuple[FileSystem, str]:
        return LocalFileSystem(), str(self.root.absolute())

    def check_writable(self) -> None:
        name = f"{_TEMPORARY}{uuid.uuid4().hex}"
        self.write(name, b"")
        self.delete(name)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[Path]:
        target = self.root / path
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with _explained("write", target):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, it continues",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again, it continues",
    errno.EACCES: "permission denied; choose another place or change its permissions",
    errno.EPERM: "permission denied; choose another place or change its permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "it does not exist",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder is needed",
}


def explain_os_error(error: OSError) -> str:
    """What an operating system error means for the user, and the remedy where there is one."""
    return _REMEDIES.get(error.errno or 0, error.strerror or str(error))


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {action} {path}: {explain_os_error(error)}") from error


def _raise_unless_absent(error: OSError) -> None:
    if error.errno != errno.ENOENT:
        raise error
