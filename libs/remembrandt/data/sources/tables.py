"""Parquet files as rows, in small memory and by range reads, past damage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    with _opened(store, path) as table:
        first = 0
        for number in range(table.metadata.num_row_groups):
            last = first + table.metadata.row_group(number).num_rows
            if first < stop and last > start:
                position = first
                batches = table.iter_batches(_BATCH_ROWS, row_groups=[number], columns=list(columns), use_threads=False)
                for batch in batches:
                    begin, end = max(start - position, 0), min(stop - position, batch.num_rows)
                    if begin < end:
                        yield from batch.slice(begin, end - begin).to_pylist()
                    position += batch.num_rows
                    if position >= stop:
                        break
            first = last


def require_column(name: str, shape: TableShape, where: str) -> None:
    """Raises SourceError unless the table has the column."""
    if name not in shape.columns:
        raise SourceError(f"{where} has no column '{name}': {nearest(name, shape.columns)}")


@contextmanager
def _opened(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    local = store.local_path(path)
    try:
        if local is not None:
            with pq.ParquetFile(str(local), buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
                yield table
        else:
            with store.open(path) as stream:
                yield pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"cannot read {store.uri}/{path}: {explain_os_error(error)}") from error
        reason = " ".join(str(error).split())[:160]
        raise DamagedFileError(f"damaged parquet file: {reason}") from error
