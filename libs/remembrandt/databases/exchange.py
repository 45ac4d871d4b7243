"""Databases to and from other layouts, and what differs between two versions."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from remembrandt.databases.database import Database
from remembrandt.databases.rows import embedding_matrix
from remembrandt.progress import Progress
from remembrandt.storage import Store

_ROWS_PER_FILE = 1_000_000
_SUFFIXES = {b"\x89PNG": "png", b"RIFF": "webp", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"BM": "bmp"}


@dataclass(frozen=True)
class VersionDiff:
    """Keys that differ between two versions of a database, sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: int


def diff_versions(old: Database, new: Database) -> VersionDiff:
    """Compares rows by key; `changed` are those whose content digest differs."""
    before, after = _digests(old), _digests(new)
    changed = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    return VersionDiff(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(changed),
        same=len(before.keys() & after.keys()) - len(changed),
    )


def export_clip_retrieval(database: Database, target: Store, *, images: bool = True) -> int:
    """Writes clip-retrieval's folder layout: `img_emb/img_emb_*.npy` (raw fp16) and `metadata/metadata_*.parquet`.

    Args:
        images: also write every image file to `images/<row id>.<suffix>`, and name it in the column `image_path`.

    Returns:
        Number of rows written.

    Raises:
        SearchError: a database of texts, which has no embeddings.
    """
    assert database.dim
    columns = [
        "key",
        "caption",
        "captions",
        "box",
        "group",
        "licence",
        *database.manifest.fields,
        "embedding",
        *(["image"] if images else []),
    ]
    with Progress("export", database.num_rows) as progress:
        for number, first in enumerate(range(0, database.num_rows, _ROWS_PER_FILE)):
            stop = min(first + _ROWS_PER_FILE, database.num_rows)
            matrices, tables = [], []
            scanner = database.dataset.scanner(
                columns=columns, offset=first, limit=stop - first, batch_size=1024, scan_in_order=True
            )
            row_id = first
            for batch in scanner.to_batches():
                table = pa.Table.from_batches([batch])
                matrices.append(embedding_matrix(table.column("embedding")))
                paths = _write_images(target, table, row_id) if images else [""] * len(table)
                tables.append(_metadata(table, row_id, paths))
                row_id += len(table)
                progress.advance(len(table))
            _write_numpy(target, f"img_emb/img_emb_{number}.npy", np.concatenate(matrices))
            _write_parquet(target, f"metadata/metadata_{number}.parquet", pa.concat_tables(tables))
    return database.num_rows


def _write_images(target: Store, table: pa.Table, first: int) -> list[str]:
    paths = []
    for offset, image in enumerate(table.column("image").to_pylist()):
        if image is None:
            paths.append("")
            continue
        suffix = next((s for magic, s in _SUFFIXES.items() if image.startswith(magic)), "img")
        path = f"images/{first + offset:09d}.{suffix}"
        target.write(path, image)
        paths.append(f"{target.uri}/{path}")
    return paths


def _metadata(table: pa.Table, first: int, paths: list[str]) -> pa.Table:
    plain = table.drop_columns([name for name in ("embedding", "image") if name in table.column_names])
    ids = pa.array(np.arange(first, first + len(table), dtype=np.int64))
    return plain.append_column("id", ids).append_column("image_path", pa.array(paths, pa.string()))


def _write_numpy(target: Store, path: str, array: np.ndarray[Any, Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    target.write(path, buffer.getvalue())


def _write_parquet(target: Store, path: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    target.write(path, buffer.getvalue())


def _digests(database: Database) -> dict[str, bytes]:
    table = database.dataset.to_table(columns=["key", "digest"])
    return dict(zip(table.column("key").to_pylist(), table.column("digest").to_pylist(), strict=True))
