"""Commit markers: how a distributed write knows which of its numbered blocks are finished.

Work is cut into numbered blocks. A worker writes a block's files first and its marker last; a marker names each file
with size and SHA-256. A restarted job reads the markers, keeps what they vouch for, and asks for the rest.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from remembrandt.storage.store import Store


@dataclass(frozen=True, order=True)
class FileRecord:
    """One file of a finished block or version: path relative to the version, size in bytes, SHA-256 hex digest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Marker:
    """One finished block: its number, the files it wrote, and what it reports (row counts, failures, statistics)."""

    number: int
    files: tuple[FileRecord, ...]
    report: dict[str, Any]


class Ledger:
    """The markers of one stage of one build, in a folder of `store`."""

    def __init__(self, store: Store, stage: str) -> None:
        self._store = store.child(stage)

    def commit(self, marker: Marker) -> None:
        """Declares a block finished. Its files must be in place already."""
        body = json.dumps(asdict(marker), sort_keys=True)
        self._store.write(_name(marker.number), body.encode())

    def committed(self) -> dict[int, Marker]:
        """All finished blocks by number."""
        names = [entry.path for entry in self._store.files() if entry.path.endswith(".json")]
        with ThreadPoolExecutor(16) as pool:
            markers = [_parse(data) for data in pool.map(self._store.read, names)]
        return {marker.number: marker for marker in markers}

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of `numbers` that are not finished, in order."""
        done = {int(entry.path.removesuffix(".json")) for entry in self._store.files() if entry.path.endswith(".json")}
        return [number for number in numbers if number not in done]

    def clear(self) -> None:
        """Forgets every marker, so that all blocks are done anew."""
        self._store.delete_tree("")


def describe_file(store: Store, path: str, recorded_as: str | None = None) -> FileRecord:
    """Size and digest of a file that has just been written."""
    size, digest = 0, hashlib.sha256()
    for chunk in store.chunks(path):
        size += len(chunk)
        digest.update(chunk)
    return FileRecord(recorded_as or path, size, digest.hexdigest())


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _parse(data: bytes) -> Marker:
    fields = json.loads(data)
    return Marker(fields["number"], tuple(FileRecord(**file) for file in fields["files"]), fields["report"])
