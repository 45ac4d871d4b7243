"""Parquet files as rows, in small memory and by range reads, past damage."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from remembrandt.configuration import nearest
from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.local import explain_os_error
from remembrandt.storage.store import Store

_BATCH_ROWS = 128
_BUFFER_BYTES = 1 << 20


class DamagedFileError(ValueError):
    """A file that cannot be read as what it should be; the message is a short reason."""


@dataclass(frozen=True)
class TableShape:
    """Column names, and row counts summed up to the end of each row group."""

    columns: tuple[str, ...]
    boundaries: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.boundaries[-1] if self.boundaries else 0


def inspect_table(store: Store, path: str) -> TableShape:
    """Reads the footer. Raises DamagedFileError."""
    with _opened(store, path) as table:
        metadata = table.metadata
        counts = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        return TableShape(tuple(table.schema_arrow.names), tuple(accumulate(counts)))


def read_rows(store: Store, path: str, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows `start` to `stop` with `columns`, decoding only the row groups that hold them. Raises DamagedFileError."""
    reader = TableReader(store, path, columns)
    try:
        yield from reader.rows(start, stop)
    finally:
        reader.close()


class TableReader:
    """Reads runs of rows of one file, and goes on where the last run ended: a row group is decoded from its start.

    Raises:
        DamagedFileError: no parquet file, or damage on the way.
    """

    def __init__(self, store: Store, path: str, columns: Sequence[str]) -> None:
        self._store, self._path, self._columns = store, path, list(columns)
        self._opened = ExitStack()
        self._table = self._opened.enter_context(_opened(store, path))
        self._groups = self._table.metadata.num_row_groups
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = self._group_stop = 0

    @property
    def position(self) -> int:
        """The first row that can still be reached without decoding anything twice."""
        return self._first

    def rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Rows `start` to `stop`."""
        if start < self._first or start >= self._group_stop:
            self._begin(start)
        while start < stop:
            batch = self._batch_with(start)
            if batch is None:
                return
            begin, end = start - self._first, min(stop - self._first, batch.num_rows)
            yield from batch.slice(begin, end - begin).to_pylist()
            start = self._first + end

    def close(self) -> None:
        """Closes the file."""
        self._opened.close()

    def _begin(self, row: int) -> None:
        """Stands at the beginning of the row group that holds a row."""
        first = 0
        for number in range(self._groups):
            stop = first + self._table.metadata.row_group(number).num_rows
            if row < stop:
                with _explained(self._store, self._path):
                    self._batches = self._table.iter_batches(
                        _BATCH_ROWS, row_groups=[number], columns=self._columns, use_threads=False
                    )
                self._batch, self._first, self._group_stop = None, first, stop
                return
            first = stop
        self._batches, self._batch, self._first, self._group_stop = iter(()), None, first, first

    def _batch_with(self, row: int) -> pa.RecordBatch | None:
        """The batch that holds a row at or after the one where this stands; None: the file has no such row."""
        while self._batch is None or row >= self._first + self._batch.num_rows:
            if row >= self._group_stop:
                self._begin(row)
                if row >= self._group_stop:
                    return None
            with _explained(self._store, self._path):
                following = next(self._batches)
            if self._batch is not None:
                self._first += self._batch.num_rows
            self._batch = following
        return self._batch


class OpenTables:
    """Tables that a process reads block by block: the one that was read last stays open. Picklable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last: dict[tuple[str, ...], TableReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store, "_last": {}}

    def rows(self, path: str, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """As `read_rows`."""
        key = (path, *columns)
        reader = self._last.pop(key, None)
        for other in (self._last.pop(other) for other in list(self._last)):
            other.close()
        if reader is None:
            reader = TableReader(self._store, path, columns)
        try:
            yield from reader.rows(start, stop)
        except BaseException:
            reader.close()
            raise
        self._last[key] = reader


def require_column(name: str, shape: TableShape, where: str) -> None:
    """Raises SourceError unless the table has the column."""
    if name not in shape.columns:
        raise SourceError(f"{where} has no column '{name}': {nearest(name, shape.columns)}")


@contextmanager
def _opened(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    local = store.local_path(path)
    with ExitStack() as stack:
        with _explained(store, path):
            file = str(local) if local is not None else stack.enter_context(store.open(path))
            table = stack.enter_context(pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False))
        yield table


@contextmanager
def _explained(store: Store, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"cannot read {store.uri}/{path}: {explain_os_error(error)}") from error
        reason = " ".join(str(error).split())[:160]
        raise DamagedFileError(f"damaged parquet file: {reason}") from error
