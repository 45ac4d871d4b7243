"""What remote stores hold, on this machine: the cache of this user, and whole folders copied into it."""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from remembrandt.errors import ConfigError, StorageError
from remembrandt.progress import format_bytes, say
from remembrandt.storage.local import explain_os_error
from remembrandt.storage.store import open_store

CACHE_VARIABLE = "REMEMBRANDT_CACHE"
_THREADS = 8


def cache_folder() -> Path:
    """`$REMEMBRANDT_CACHE`, else `~/.cache/remembrandt`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/remembrandt").expanduser().absolute()


@contextmanager
def writing_cache() -> Iterator[None]:
    """Raises StorageError, which says how to name another cache, where writing to it fails within."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write the cache {cache_folder()}: {explain_os_error(error)}; {CACHE_VARIABLE} names another place"
        ) from error


def write_cached(path: Path, pieces: Iterable[memoryview]) -> None:
    """Writes a file of the cache, whole or not at all; several processes may do so at once.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    with ExitStack() as stack:
        with writing_cache():
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(temporary.open("wb"))
            stack.callback(temporary.unlink, missing_ok=True)
        for piece in pieces:
            with writing_cache():
                stream.write(piece)
        with writing_cache():
            stream.close()
            os.replace(temporary, path)


def gigabytes(variable: str, default: float) -> float:
    """Bytes from an environment variable in GB.

    Raises:
        ConfigError: it is no number.
    """
    value = os.environ.get(variable) or str(default)
    try:
        return float(value) * 1e9
    except ValueError:
        raise ConfigError(f"{variable} is '{value}': set it to a number of gigabytes") from None


def local_folder(uri: str | Path) -> Path:
    """A folder on this machine: a path as it is; for `s3://…` a copy of what lies there now, which is made once.

    Raises:
        ConfigError: nothing lies there.
        StorageError: it cannot be read.
    """
    if "://" not in str(uri):
        return Path(uri)
    store = open_store(uri)
    if (path := store.local_path()) is not None:
        return path
    if not (entries := store.files()):
        raise ConfigError(f"there is nothing at {uri}: name a folder that something was written to")
    key = hashlib.sha256("\0".join([store.uri, *(f"{e.path} {e.bytes} {e.identity}" for e in entries)]).encode())
    target = cache_folder() / "remote" / key.hexdigest()[:32]
    if target.is_dir():
        return target
    with writing_cache():
        target.parent.mkdir(parents=True, exist_ok=True)
    say(f"copying {uri} to this machine: {format_bytes(sum(entry.bytes for entry in entries))}")
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda entry: store.download(entry.path, partial / entry.path), entries))
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
