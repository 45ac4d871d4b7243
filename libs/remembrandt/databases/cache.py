"""Files of remote versions on this machine, and the memory of which files were found intact.

Both lie below `REMEMBRANDT_CACHE` (default `~/.cache/remembrandt`). Remote files are kept under their SHA-256; a file
is hashed once for each identity (path, size, time stamp or ETag), so that opening a large version again is quick.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from remembrandt.databases.manifest import MANIFEST
from remembrandt.errors import CorruptionError
from remembrandt.storage import Store
from remembrandt.storage.folders import cache_folder, writing_cache
from remembrandt.storage.ledger import FileRecord
from remembrandt.storage.local import LocalStore

_HASHING_THREADS = 4


def local_file(store: Store, record: FileRecord) -> Path:
    """The file on this machine: in place, or downloaded (whole and checked) into the cache.

    Raises:
        CorruptionError: what was downloaded is not what the manifest names.
    """
    path = store.local_path(record.path)
    if path is not None:
        return path
    cached = cache_folder() / "files" / record.sha256[:2] / record.sha256 / Path(record.path).name
    if not cached.is_file() or cached.stat().st_size != record.bytes:
        store.download(record.path, cached)
    local, found = LocalStore(cached.parent), cached.stat()
    stamp = _stamp(local, record, f"{found.st_mtime_ns} {found.st_ino}")
    if stamp.exists():
        return cached
    if local.sha256(cached.name) != record.sha256:
        cached.unlink(missing_ok=True)
        raise CorruptionError(f"{store.uri}/{record.path} is damaged: its SHA-256 is not the manifest's; restore it")
    _touch(stamp)
    return cached


def check_files(
    store: Store, records: Iterable[FileRecord], *, hash_all: bool = False, sizes_only: bool = False
) -> None:
    """Compares the files of a version with its manifest.

    Args:
        hash_all: hash every file, also those that were found intact before and look unchanged.
        sizes_only: look at presence and size alone.

    Raises:
        CorruptionError: names the first file that is missing, extra, of another size or altered.
    """
    entries = {entry.path: entry for entry in store.files()}
    records = list(records)
    extra = sorted(set(entries) - {record.path for record in records} - {MANIFEST})
    if extra:
        raise CorruptionError(f"{store.uri}/{extra[0]} does not belong to this version: remove it")
    todo = []
    for record in records:
        entry = entries.get(record.path)
        if entry is None:
            raise CorruptionError(f"{store.uri}/{record.path} is missing: restore it, or publish another version")
        if entry.bytes != record.bytes:
            raise CorruptionError(
                f"{store.uri}/{record.path} is damaged: {entry.bytes:,} bytes instead of {record.bytes:,}; restore it"
            )
        stamp = _stamp(store, record, entry.identity)
        if not sizes_only and (hash_all or not stamp.exists()):
            todo.append((record, stamp))
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for (record, stamp), digest in zip(todo, pool.map(lambda item: store.sha256(item[0].path), todo), strict=True):
            if digest != record.sha256:
                stamp.unlink(missing_ok=True)
                raise CorruptionError(
                    f"{store.uri}/{record.path} is damaged: its SHA-256 is not the manifest's; restore it"
                )
            _touch(stamp)


def _touch(stamp: Path) -> None:
    """Remembers; without a cache that can be written a file is hashed again next time."""
    with suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _stamp(store: Store, record: FileRecord, identity: str) -> Path:
    name = hashlib.sha256(f"{store.uri}\0{record.path}\0{record.sha256}\0{identity}".encode()).hexdigest()
    return cache_folder() / "intact" / name[:2] / name


def linked_folder(store: Store, records: Iterable[FileRecord]) -> Path:
    """The files of one remote folder, side by side on this machine (hard links into the cache)."""
    records = sorted(records)
    name = hashlib.sha256("\0".join(f"{r.path} {r.sha256}" for r in records).encode()).hexdigest()
    folder = cache_folder() / "folders" / name[:32]
    for record in records:
        source, target = local_file(store, record), folder / Path(record.path).name
        with writing_cache():
            folder.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                with suppress(FileExistsError):  # several processes of a node open a version at once
                    os.link(source, target)
    return folder
