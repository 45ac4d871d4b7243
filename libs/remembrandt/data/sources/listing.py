"""Listing a source's files, and keeping long sorted lists of names small."""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from botocore.exceptions import ClientError

from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.store import Entry, Store, open_store, split_uri

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_CHUNK = 512
_REMOTE_READS = 16


@dataclass(frozen=True)
class Listing:
    """Files of a source, and those that belong beside them; both sorted by path."""

    store: Store
    files: list[Entry]
    companions: list[Entry]


def list_files(
    uri: str, suffixes: Sequence[str], include: Sequence[str] = (), companions: Sequence[str] = ()
) -> Listing:
    """Files with one of `suffixes` (lower case, with dot) that match `include`, without hidden ones.

    `uri` may also name one such file; then the store is the folder around it.

    Raises:
        SourceError: missing, not readable, or no such files.
    """
    try:
        store, entries = _list(uri, suffixes)
    except StorageError as error:
        raise SourceError(f"cannot read source {uri}: {error}") from error
    files = [entry for entry in entries if _is_wanted(entry.path, suffixes, include)]
    if not files:
        raise SourceError(_nothing_found(uri, store, len(entries), suffixes, include))
    beside = [entry for entry in entries if companions and entry.path.endswith(tuple(companions))]
    return Listing(store, files, beside)


def content_digest(entries: Iterable[Entry]) -> str:
    """Hex digest over paths, sizes and identities."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.path}\0{entry.bytes}\0{entry.identity}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_gone(error: StorageError) -> bool:
    """Whether it is this one file that is missing or closed to us, and not the storage that fails."""
    cause = error.__cause__
    if isinstance(cause, ClientError):
        return cause.response["Error"]["Code"] in {"404", "NoSuchKey", "NotFound"}
    return isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError)


def map_ahead(store: Store, function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """Like `map`; on a remote store several calls run ahead, so that latency is hidden. Order is kept."""
    if store.local_path() is not None:
        yield from map(function, items)
        return
    pending: deque[Future[ResultT]] = deque()
    with ThreadPoolExecutor(_REMOTE_READS) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * _REMOTE_READS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class PackedNames(Sequence[str]):
    """An immutable list of names, compressed by neighbourhood: sorted paths take a few bytes each. Picklable."""

    def __init__(self, names: Iterable[str]) -> None:
        self._chunks: list[bytes] = []
        self._length = 0
        chunk: list[str] = []
        for name in names:
            chunk.append(name)
            if len(chunk) == _CHUNK:
                self._append(chunk)
                chunk = []
        if chunk:
            self._append(chunk)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._unpack(index // _CHUNK)[index % _CHUNK]

    def between(self, start: int, stop: int) -> Iterator[str]:
        """Names `start` to `stop`, unpacked a chunk at a time."""
        stop = min(stop, self._length)
        while start < stop:
            chunk, first = divmod(start, _CHUNK)
            names = self._unpack(chunk)[first : first + stop - start]
            yield from names
            start += len(names)

    def _append(self, names: list[str]) -> None:
        self._chunks.append(zlib.compress("\0".join(names).encode("utf-8", "surrogatepass"), 1))
        self._length += len(names)

    def _unpack(self, chunk: int) -> list[str]:
        return zlib.decompress(self._chunks[chunk]).decode("utf-8", "surrogatepass").split("\0")


def _list(uri: str, suffixes: Sequence[str]) -> tuple[Store, list[Entry]]:
    store = open_store(uri)
    names_file = uri.lower().endswith(tuple(suffixes))
    local = store.local_path()
    if local is not None and not local.is_file():
        return store, store.files()
    entries = [] if local is not None else store.files()
    if entries or not names_file:
        return store, entries
    parent, name = split_uri(uri)
    store = open_store(parent)
    return store, [entry for entry in store.files() if entry.path == name]


def _is_wanted(path: str, suffixes: Sequence[str], include: Sequence[str]) -> bool:
    if not path.lower().endswith(tuple(suffixes)):
        return False
    if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")):
        return False
    return not include or any(fnmatchcase(path, pattern) for pattern in include)


def _nothing_found(uri: str, store: Store, listed: int, suffixes: Sequence[str], include: Sequence[str]) -> str:
    wanted = ", ".join(suffixes)
    local = store.local_path()
    if local is not None and not local.exists():
        return f"source {uri} does not exist: check its uri"
    if listed == 0:
        return f"source {uri} is empty or does not exist: check its uri"
    among = f" that match include {list(include)}" if include else ""
    return f"source {uri} holds {listed} files but none ending in {wanted}{among}: check uri, kind and include"
