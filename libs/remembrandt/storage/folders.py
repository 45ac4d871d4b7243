"""What remote stores hold, on this machine: the cache of this user, and whole folders copied into it."""

import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from remembrandt.errors import ConfigError
from remembrandt.progress import format_bytes, say
from remembrandt.storage.store import open_store

CACHE_VARIABLE = "REMEMBRANDT_CACHE"
_THREADS = 8


def cache_folder() -> Path:
    """`$REMEMBRANDT_CACHE`, else `~/.cache/remembrandt`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/remembrandt").expanduser().absolute()


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
