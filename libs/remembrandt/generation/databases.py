"""Databases that pictures are painted from: each version opened once, and as many kept open as there is room for."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from remembrandt.databases.database import Database
from remembrandt.generation.requests import DatabaseRef

OpenDatabase = Callable[[DatabaseRef], Database]


class OpenDatabases:
    """Opens databases when they are first asked for. Thread-safe; may be shared by several finders.

    Args:
        open_database: how; None: by their URI.
        max_bytes: of the files of all versions that stay open; those asked for least recently go first. What still
            works with one of them keeps it until it is done. None: all stay open.
    """

    def __init__(self, open_database: OpenDatabase | None = None, max_bytes: int | None = None) -> None:
        self._open = open_database or (lambda ref: Database.open(ref.uri, version=ref.version))
        self._max_bytes = max_bytes
        self._opened: OrderedDict[tuple[str, str | None], Database] = OrderedDict()
        self._opening: dict[tuple[str, str | None], threading.Lock] = {}
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __getitem__(self, ref: DatabaseRef) -> Database:
        with self._lock:
            if (found := self._known(ref)) is not None:
                return found
            opening = self._opening.setdefault(ref.key, threading.Lock())
        with opening:
            with self._lock:
                if (found := self._known(ref)) is not None:
                    return found
                self.misses += 1
            database = self._open(ref)
            with self._lock:
                self._opened[ref.key] = database
                self._opening.pop(ref.key, None)
                self._make_room()
            return database

    def __len__(self) -> int:
        return len(self._opened)

    @property
    def total_bytes(self) -> int:
        """Of the files of all open versions."""
        return sum(database.manifest.total_bytes for database in self._opened.values())

    def close(self) -> None:
        """Gives back every database."""
        with self._lock:
            for database in self._opened.values():
                database.close()
            self._opened.clear()

    def _known(self, ref: DatabaseRef) -> Database | None:
        found = self._opened.get(ref.key)
        if found is not None:
            self.hits += 1
            self._opened.move_to_end(ref.key)
        return found

    def _make_room(self) -> None:
        """Forgets, and does not close: another thread may be searching. Memory maps go with the last reference."""
        while self._max_bytes is not None and len(self._opened) > 1 and self.total_bytes > self._max_bytes:
            self._opened.popitem(last=False)
