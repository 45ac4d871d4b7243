"""Databases that pictures are painted from, each version opened once."""

from collections.abc import Callable

from remembrandt.databases.database import Database
from remembrandt.generation.requests import DatabaseRef

OpenDatabase = Callable[[DatabaseRef], Database]


class OpenDatabases:
    """Opens databases when they are first asked for.

    Args:
        open_database: how; None: by their URI.
        check: raises what is wrong with an opened database.
    """

    def __init__(
        self, open_database: OpenDatabase | None = None, check: Callable[[Database], None] | None = None
    ) -> None:
        self._open = open_database or (lambda ref: Database.open(ref.uri, version=ref.version))
        self._check = check
        self._opened: dict[tuple[str, str | None], Database] = {}

    def __getitem__(self, ref: DatabaseRef) -> Database:
        if ref.key not in self._opened:
            database = self._open(ref)
            if self._check is not None:
                self._check(database)
            self._opened[ref.key] = database
        return self._opened[ref.key]

    def close(self) -> None:
        """Gives back every database."""
        for database in self._opened.values():
            database.close()
        self._opened.clear()
