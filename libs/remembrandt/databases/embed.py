"""First stage of a build, on Ray Data: source blocks → decoded patches → raw embeddings → committed fragments.

One Ray Data row is one numbered block, so that a block is decoded, embedded and committed as a whole whatever Ray does
with its own blocks. Letters in names: N rows of a block, H W image, D embedding.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from PIL import Image

from remembrandt import encoders
from remembrandt.allocation import keep_freed_memory
from remembrandt.data.decode import DecodeConfig, DecodeError, decode_image
from remembrandt.data.patches import Patch, PatchConfig, cut_box, cut_patches, encode_patch, patch_bytes
from remembrandt.data.records import Source, SourceBlock, SourceRecord
from remembrandt.data.sources.common import Exclusions, key_digests
from remembrandt.databases.rows import content_digest, embedding_array, open_rows, row_schema, write_fragment
from remembrandt.databases.workers import WorkersConfig
from remembrandt.distributed import num_cpus, num_gpus, plain_error, quiet_ray_data
from remembrandt.encoders import EncoderConfig
from remembrandt.encoders.base import PixelTransform
from remembrandt.progress import Progress
from remembrandt.storage import Store
from remembrandt.storage.ledger import Ledger, Marker


@dataclass(frozen=True)
class BaseRows:
    """A block of rows that are taken over from another version, embeddings and all."""

    store: Store
    first: int
    stop: int


@dataclass(frozen=True)
class Excluded:
    """Rows that must not come in.

    Attributes:
        chosen: by key, group or licence, of source and base alike.
        ids: row ids of the base version.
        base_keys: sorted digests of the keys that the base version already holds.
    """

    chosen: Exclusions
    ids: frozenset[int]
    base_keys: NDArray[np.uint64]

    def in_base(self, key: str) -> bool:
        """Whether the base version already has a row of this item: the whole of it, or its first patch."""
        digests = key_digests([key, patch_key(key, 0)])
        positions = np.searchsorted(self.base_keys, digests)
        return (
            bool((self.base_keys[np.minimum(positions, len(self.base_keys) - 1)] == digests).any())
            if len(self.base_keys)
            else False
        )

    def base_row(self, row_id: int, key: str, group: str, licence: str) -> bool:
        """Whether a row of the base version stays out; a patch goes with its image."""
        image_key = key.rpartition("#")[0] or key
        return row_id in self.ids or any(
            self.chosen.drops(SourceRecord(name, group=group, licence=licence)) for name in {key, image_key}
        )


@dataclass(frozen=True)
class EmbedJob:
    """Everything that the workers need to know of a build."""

    store: Store
    ledger: Ledger
    source: Source | None
    blocks: tuple[SourceBlock | BaseRows, ...]
    decode: DecodeConfig
    patches: PatchConfig
    excluded: Excluded
    fields: tuple[str, ...]
    dim: int | None
    encoder: EncoderConfig | None
    pixel_transform: PixelTransform | None

    @property
    def schema(self) -> pa.Schema:
        """Columns of a fragment."""
        return row_schema(self.fields, self.dim)


def patch_key(key: str, index: int) -> str:
    """Row key of a patch: its image's key and its number."""
    return f"{key}#{index}"


def embed_blocks(job: EmbedJob, workers: WorkersConfig, estimated_records: int) -> None:
    """Runs the blocks that are not committed yet; returns when every block is."""
    missing = job.ledger.missing(range(len(job.blocks)))
    share = estimated_records // max(len(job.blocks), 1)
    progress = Progress("embed", estimated_records, "items", done=share * (len(job.blocks) - len(missing)))
    if not missing:
        return
    quiet_ray_data()
    blocks = ray.data.from_items([{"number": n} for n in missing], override_num_blocks=len(missing))
    read = blocks.map(ReadBlock(job), num_cpus=workers.task_cpus)
    if job.encoder is not None and job.pixel_transform is not None:
        read = read.map(
            cast(Any, EmbedBlock),  # Ray's annotations know functions only
            fn_constructor_args=(job.encoder, workers.encoder_threads),
            **encoder_pool(workers, len(missing)),
        )
    written = read.map(WriteBlock(job), num_cpus=workers.task_cpus)
    with progress:
        try:
            for result in written.iter_rows():
                progress.advance(int(result["items"]))
        except Exception as error:
            raise plain_error(error) from error


def encoder_pool(workers: WorkersConfig, blocks: int) -> dict[str, Any]:
    """Ray Data options of the pool of encoder actors: one a GPU, else one a two logical CPUs' worth."""
    gpus = num_gpus()
    per_actor = (1.0 if gpus else 0.0) if workers.encoder_gpus == "auto" else workers.encoder_gpus
    size = (gpus or num_cpus()) if workers.encoders == "auto" else workers.encoders
    size = max(1, min(size, blocks))
    return {
        "compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        "num_cpus": workers.encoder_cpus,
        "num_gpus": per_actor,
    }


class ReadBlock:
    """{number} → {number, rows (Arrow IPC), pixels, report}: read, decode, cut and preprocess one block."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        number = int(item["number"])
        block = self._job.blocks[number]
        if isinstance(block, BaseRows):
            rows, items = self._base_rows(block), block.stop - block.first
            return _pack(number, rows, None, {"items": items, "excluded": items - len(rows), "failures": []})
        return self._source_rows(number, block)

    def _base_rows(self, block: BaseRows) -> pa.Table:
        dataset = open_rows(block.store)
        table = dataset.scanner(offset=block.first, limit=block.stop - block.first, scan_in_order=True).to_table()
        columns = (table.column(name).to_pylist() for name in ("id", "key", "group", "licence"))
        kept = [not self._job.excluded.base_row(*row) for row in zip(*columns, strict=True)]
        for name in self._job.fields:
            if name not in table.column_names:
                table = table.append_column(name, pa.array([""] * len(table), pa.string()))
        return table.filter(pa.array(kept, pa.bool_())).select(self._job.schema.names)

    def _source_rows(self, number: int, block: SourceBlock) -> dict[str, Any]:
        job = self._job
        assert job.source is not None
        rows: list[dict[str, Any]] = []
        pixels: list[NDArray[np.uint8]] = []
        failures: list[dict[str, str]] = []
        items = excluded = known = 0
        for record in job.source.read(block):
            items += 1
            if job.excluded.chosen.drops(record):
                excluded += 1
            elif job.excluded.in_base(record.key):
                known += 1
            elif record.problem is not None:
                failures.append({"key": record.key, "problem": record.problem})
            else:
                try:
                    for row, patch in self._rows_of(record):
                        rows.append(row)
                        if patch is not None and job.pixel_transform is not None:
                            pixels.append(job.pixel_transform(patch))
                except DecodeError as error:
                    failures.append({"key": record.key, "problem": str(error)})
        report = {"items": items, "excluded": excluded, "in_base": known, "failures": failures}
        return _pack(number, _table(rows, job), np.stack(pixels) if pixels else None, report)

    def _rows_of(self, record: SourceRecord) -> Iterator[tuple[dict[str, Any], Image.Image | None]]:
        if self._job.encoder is not None and record.image is None:
            raise DecodeError("it has no image")
        if self._job.encoder is None and self._job.dim is not None and record.embedding is None:
            raise DecodeError("it has no embedding")
        if record.image is None:
            yield self._row(record, record.key, None, (0, 0), record.box), None
            return
        image = decode_image(record.image, self._job.decode)
        if record.box is not None:
            cut = cut_box(image, record.box, self._job.patches.size)
            yield self._row(record, record.key, encode_patch(cut, self._job.patches), cut.size, record.box), cut
            return
        if self._job.patches.mode == "whole":
            (patch,) = cut_patches(image, record.key, self._job.patches)
            data = patch_bytes(patch, record.image, self._job.patches)
            yield self._row(record, record.key, data, patch.image.size, None), patch.image
            return
        for patch in cut_patches(image, record.key, self._job.patches):
            yield self._patch_row(record, patch), patch.image

    def _patch_row(self, record: SourceRecord, patch: Patch) -> dict[str, Any]:
        data = encode_patch(patch.image, self._job.patches)
        return self._row(record, patch_key(record.key, patch.index), data, patch.image.size, patch.box)

    def _row(
        self, record: SourceRecord, key: str, image: bytes | None, size: tuple[int, int], box: tuple[int, ...] | None
    ) -> dict[str, Any]:
        return {
            "key": key,
            "caption": record.caption,
            "captions": list(record.captions),
            "image": image,
            "width": size[0],
            "height": size[1],
            "box": None if box is None else list(box),
            "group": record.group or record.key,
            "licence": record.licence,
            "digest": content_digest(image, record.caption, record.embedding),
            **{name: record.fields.get(name, "") for name in self._job.fields},
            **({} if record.embedding is None else {"embedding": record.embedding}),
        }


class EmbedBlock:
    """Actor: adds the raw embeddings of the block's pixels."""

    def __init__(self, config: EncoderConfig, threads: int) -> None:
        import torch

        keep_freed_memory()
        torch.set_num_threads(threads)
        self._encoder = encoders.open_encoder(config)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        pixels_NHWC = _unpack_pixels(item)
        if pixels_NHWC is None:
            return item
        embeddings_ND = self._encoder.encode_pixels(pixels_NHWC)
        return {
            "number": item["number"],
            "rows": item["rows"],
            "pixels": embeddings_ND.astype(np.float32).tobytes(),
            "shape": json.dumps(embeddings_ND.shape),
            "report": item["report"],
        }


class WriteBlock:
    """Writes a block's fragment, then its commit marker; yields {number, items}."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        number, report = int(item["number"]), json.loads(item["report"])
        table = pa.ipc.open_stream(item["rows"]).read_all()
        if "embedding" not in table.column_names and self._job.dim is not None:
            shape = json.loads(item["shape"])
            embeddings_ND = np.frombuffer(item["pixels"], dtype=np.float32).reshape(shape or (0, self._job.dim))
            table = table.append_column("embedding", embedding_array(embeddings_ND))
        table = table.cast(self._job.schema)
        fragment, files = write_fragment(self._job.store, table) if len(table) else (None, ())
        report |= {"rows": len(table), "fragment": fragment, "licences": _counts(table.column("licence").to_pylist())}
        self._job.ledger.commit(Marker(number, files, report))
        return {"number": number, "items": report["items"]}


def _pack(number: int, rows: pa.Table, pixels_NHWC: NDArray[np.uint8] | None, report: dict[str, Any]) -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return {
        "number": number,
        "rows": sink.getvalue().to_pybytes(),
        "pixels": b"" if pixels_NHWC is None else pixels_NHWC.tobytes(),
        "shape": "[]" if pixels_NHWC is None else json.dumps(pixels_NHWC.shape),
        "report": json.dumps(report),
    }


def _unpack_pixels(item: dict[str, Any]) -> NDArray[np.uint8] | None:
    shape = json.loads(item["shape"])
    return np.frombuffer(item["pixels"], dtype=np.uint8).reshape(shape) if shape else None


def _table(rows: Sequence[dict[str, Any]], job: EmbedJob) -> pa.Table:
    ready = bool(rows) and "embedding" in rows[0]
    schema = job.schema
    names = [name for name in schema.names if name != "embedding"]
    arrays = [pa.array([row[name] for row in rows], schema.field(name).type) for name in names]
    if ready:
        arrays.append(embedding_array(np.stack([row["embedding"] for row in rows])))
        names.append("embedding")
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in names]))


def _counts(values: Sequence[str]) -> dict[str, int]:
    unique, counts = np.unique(np.asarray(values, dtype=object).astype(str), return_counts=True)
    return {str(value): int(count) for value, count in zip(unique, counts, strict=True)}
