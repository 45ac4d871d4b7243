"""The text columns of a version, close at hand: a memory-mapped Arrow file on local disk, made at first use.

Versions whose texts are larger than `REMEMBRANDT_TEXT_CACHE_GB` (default 4) are read from the row store instead.
"""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from remembrandt.databases.rows import Row
from remembrandt.progress import say
from remembrandt.storage.folders import cache_folder, gigabytes

TEXT_COLUMNS = ("key", "caption", "group", "licence")
_BATCH_ROWS = 65_536
_SAMPLED_ROWS = 1000


class TextColumns:
    """Strings by row id: `TEXT_COLUMNS` and the source's own fields of N rows."""

    def __init__(self, file: Path, fields: Sequence[str]) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        sizes = [len(chunk) for chunk in table.column(0).chunks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._chunks = {name: table.column(name).chunks for name in table.column_names}
        self._fields = tuple(fields)

    @classmethod
    def open(cls, dataset: lance.LanceDataset, fields: Sequence[str], identity: str) -> Self | None:
        """Those of a row store; None: they are too large to be kept here.

        Args:
            identity: of the row store's contents.
        """
        names = [*TEXT_COLUMNS, *fields]
        path = cache_folder() / "texts" / f"{identity}.arrow"
        if not path.is_file():
            limit = gigabytes("REMEMBRANDT_TEXT_CACHE_GB", 4)
            if _estimated_bytes(dataset, names) > limit:
                return None
            try:
                _copy(dataset, names, path)
            except OSError as error:
                say(f"texts come from the row store, more slowly: cannot write {path.parent} ({error.strerror})")
                return None
        return cls(path, fields)

    def rows(self, ids_N: NDArray[np.int64], columns: Sequence[str]) -> list[Row]:
        """Rows in the order asked, with the columns asked."""
        places_N = np.searchsorted(self._starts, ids_N, side="right") - 1
        where = list(zip(places_N.tolist(), (ids_N - self._starts[places_N]).tolist(), strict=True))
        found = {c: [self._chunks[c][place][row].as_py() for place, row in where] for c in columns if c != "id"}
        own = [name for name in self._fields if name in found]
        base = [name for name in found if name not in own]
        return [
            Row(
                id=row_id,
                fields={name: found[name][number] for name in own},
                **{name: found[name][number] for name in base},
            )
            for number, row_id in enumerate(ids_N.tolist())
        ]


def _estimated_bytes(dataset: lance.LanceDataset, names: list[str]) -> float:
    """Of all texts, from rows all over the version."""
    rows = dataset.count_rows()
    ids = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).astype(np.int64))
    return dataset.take(ids.tolist(), columns=names).nbytes / max(1, len(ids)) * rows


def _copy(dataset: lance.LanceDataset, names: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    scanner = dataset.scanner(columns=names, batch_size=_BATCH_ROWS, scan_in_order=True)
    try:
        with pa.ipc.new_file(str(temporary), scanner.projected_schema) as writer:
            for batch in scanner.to_batches():
                writer.write_batch(batch)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
