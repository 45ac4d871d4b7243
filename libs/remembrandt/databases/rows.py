"""The row store: one Lance dataset a version, written in fragments by many workers and committed once.

Row i of the dataset is row id i. Fragments are written without ids, because how many rows a block yields is known only
when it is done; the id column is added when all fragments stand in order.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from numpy.typing import NDArray

from remembrandt.databases.manifest import ROWS
from remembrandt.errors import StorageError
from remembrandt.storage import Store
from remembrandt.storage.ledger import FileRecord, describe_file

# Ray forks before Lance is used in the child, and Lance warns of it all the same.
warnings.filterwarnings("ignore", message="lance is not fork-safe")

BASE_COLUMNS = ("id", "key", "caption", "captions", "image", "width", "height", "box", "group", "licence", "digest")
_SCAN_ROWS = 8192


@dataclass(frozen=True)
class Row:
    """One row of a database.

    Attributes:
        box: left, top, right, bottom in pixels of the source image, or None where the whole image was taken.
        digest: 128-bit content hash (of the image, else of text and ready embedding): exact duplicates share it.
        fields: the source's own string columns, for example style or artist.
    """

    id: int
    key: str = ""
    caption: str = ""
    captions: tuple[str, ...] = ()
    image: bytes | None = None
    width: int = 0
    height: int = 0
    box: tuple[int, int, int, int] | None = None
    group: str = ""
    licence: str = ""
    digest: bytes = b""
    fields: Mapping[str, str] = field(default_factory=dict)


def row_schema(fields: Sequence[str], dim: int | None) -> pa.Schema:
    """Columns of a fragment, without the id. `dim` None: a text-only database without embeddings."""
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("image", pa.large_binary()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.int32(), 4)),
        pa.field("group", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in fields),
    ]
    if dim is not None:
        columns.append(pa.field("embedding", pa.list_(pa.float16(), dim), nullable=False))
    return pa.schema(columns)


def content_digest(image: bytes | None, text: str, embedding_D: NDArray[np.float32] | None = None) -> bytes:
    """128-bit BLAKE2 of the image file; where there is none, of the text and the ready embedding, if there is one."""
    if image is not None:
        return hashlib.blake2b(image, digest_size=16).digest()
    ready = b"" if embedding_D is None else np.asarray(embedding_D, dtype=np.float16).tobytes()
    return hashlib.blake2b(text.encode() + ready, digest_size=16).digest()


def embedding_array(embeddings_ND: NDArray[np.float32]) -> pa.Array:
    """Raw embeddings as the fp16 column of the row store."""
    flat = pa.array(np.ascontiguousarray(embeddings_ND, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1])


def embedding_matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float16]:
    """The embedding column of a table as a matrix (N, D) float16."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float16).reshape(len(array), -1)


def write_fragment(store: Store, table: pa.Table) -> tuple[dict[str, Any], tuple[FileRecord, ...]]:
    """Writes rows as one uncommitted fragment of `rows.lance`: its metadata (JSON), and its files with digests."""
    with tempfile.TemporaryDirectory() as scratch:
        local = store.local_path(ROWS)
        target = local or Path(scratch, ROWS)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = write_fragments(
                table,
                str(target),
                schema=table.schema,
                mode="create",
                max_rows_per_file=max(len(table), 1),
                max_bytes_per_file=2**62,
            )
        except OSError as error:
            raise _explained(error, store) from error
        (fragment,) = written
        paths = [f"{ROWS}/data/{file.path}" for file in fragment.files]
        if local is None:
            for path in paths:
                store.upload(Path(scratch, path), path)
            from remembrandt.storage.local import LocalStore

            files = tuple(describe_file(LocalStore(Path(scratch)), path) for path in paths)
        else:
            files = tuple(describe_file(store, path) for path in paths)
    return fragment.to_json(), files


def commit_rows(store: Store, schema: pa.Schema, fragments: Sequence[dict[str, Any]]) -> lance.LanceDataset:
    """Makes the fragments, in this order, the dataset of the version, adds the id column, and drops everything else."""
    uri, options = store.lance(ROWS)
    try:
        metadata = [lance.FragmentMetadata.from_json(json.dumps(fragment)) for fragment in fragments]
        dataset = lance.LanceDataset.commit(
            uri, lance.LanceOperation.Overwrite(schema, metadata), storage_options=options
        )
        return _add_ids(dataset, uri, options)
    except OSError as error:
        raise _explained(error, store) from error


def open_rows(store: Store) -> lance.LanceDataset:
    """The row store of a version."""
    uri, options = store.lance(ROWS)
    try:
        return lance.dataset(uri, storage_options=options)
    except (OSError, ValueError) as error:
        raise _explained(error, store) from error


def scan_embeddings(dataset: lance.LanceDataset, first: int, stop: int) -> Iterator[NDArray[np.float16]]:
    """Raw embeddings of the rows `first` … `stop - 1`, in order, in pieces (n, D) float16."""
    scanner = dataset.scanner(
        columns=["embedding"], offset=first, limit=stop - first, batch_size=_SCAN_ROWS, scan_in_order=True
    )
    for batch in scanner.to_batches():
        yield embedding_matrix(batch.column("embedding"))


def take_embeddings(dataset: lance.LanceDataset, ids_N: NDArray[np.int64]) -> NDArray[np.float16]:
    """Raw embeddings (N, D) float16 of any rows, in the order asked."""
    unique, inverse = np.unique(ids_N, return_inverse=True)
    table = dataset.take(unique.tolist(), columns=["embedding"])
    return embedding_matrix(table.column("embedding"))[inverse]


def take_rows(
    dataset: lance.LanceDataset, ids: Sequence[int], columns: Sequence[str], fields: Sequence[str]
) -> list[Row]:
    """Rows by id, in the order asked, with the columns asked (others keep their defaults)."""
    unique, inverse = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
    wanted = [column for column in columns if column != "id"]
    records = dataset.take(unique.tolist(), columns=wanted).to_pylist()
    rows = [_make_row(int(row_id), record, fields) for row_id, record in zip(unique, records, strict=True)]
    return [rows[position] for position in inverse]


def _make_row(row_id: int, record: dict[str, Any], fields: Sequence[str]) -> Row:
    own = {name: record.pop(name) for name in fields if name in record}
    if "captions" in record:
        record["captions"] = tuple(record["captions"])
    if record.get("box") is not None:
        record["box"] = tuple(record["box"])
    return Row(id=row_id, fields=own, **record)


def _add_ids(dataset: lance.LanceDataset, uri: str, options: dict[str, str]) -> lance.LanceDataset:
    merged, schema, first = [], dataset.schema, 0
    for fragment in dataset.get_fragments():
        count = fragment.count_rows()
        ids = pa.table({"id": pa.array(np.arange(first, first + count, dtype=np.int64))})
        metadata, schema = fragment.merge_columns(ids.to_reader())
        merged.append(metadata)
        first += count
    dataset = lance.LanceDataset.commit(
        uri, lance.LanceOperation.Merge(merged, schema), read_version=dataset.version, storage_options=options
    )
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    return dataset


def _explained(error: Exception, store: Store) -> StorageError:
    text = " ".join(str(error).split())
    if "No space left" in text or "os error 28" in text:
        text = "the disk is full; free some space and run the same command again, it continues"
    return StorageError(f"cannot use the row store {store.uri}/{ROWS}: {text[:300]}")
