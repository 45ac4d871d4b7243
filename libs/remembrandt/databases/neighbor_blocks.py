"""The distributed half of precomputing neighbours, on Ray Data: query blocks → embeddings → neighbours → fragments.

Reading and embedding are those of a build. Letters in names: B queries, K neighbours, D embedding.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.databases.database import Database
from remembrandt.databases.embed import BaseRows, EmbedBlock, EmbedJob, ReadBlock, encoder_pool
from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.databases.manifest import Manifest
from remembrandt.databases.neighbor_dataset import NO_BOX, Similarity, neighbors_schema
from remembrandt.databases.neighbor_search import ExclusionConfig, Identities, NeighborFinder, QueryBatch, SameConfig
from remembrandt.databases.rows import embedding_array, open_rows, write_fragment
from remembrandt.databases.workers import WorkersConfig
from remembrandt.distributed import num_cpus, plain_error, quiet_ray_data
from remembrandt.progress import Progress
from remembrandt.storage import Store
from remembrandt.storage.ledger import FileRecord, Ledger, Marker

_QUERY_COLUMNS = ("key", "caption", "box", "group", "digest")


class NeighborSearchConfig(Config):
    """What is searched and what is stored.

    Attributes:
        num_neighbors: k stored a query (P1 stores 20).
        similarities: `clip` (embeddings of the images), `bm25` (the query's caption against captions), or both.
        where: column → allowed values; only such rows of the database are neighbours.
        same: a column that neighbours share with their query.
        store_embeddings: also store the neighbours' raw embeddings (fp16), so that training needs no database.
        store_boxes: also store the neighbours' patch boxes.
    """

    num_neighbors: int = Field(20, ge=1)
    similarities: tuple[Similarity, ...] = Field(("clip",), min_length=1)
    exclude: ExclusionConfig = ExclusionConfig()
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    same: SameConfig | None = None
    store_embeddings: bool = False
    store_boxes: bool = False


class SearchWorkersConfig(WorkersConfig):
    """How the work is spread. Nothing here changes what is found."""

    searchers: int | None = Field(None, ge=1)
    searcher_cpus: float = Field(0.25, gt=0)


@dataclass(frozen=True)
class SearchJob:
    """What the workers need to know: the version that is searched, the queries, where the neighbours go."""

    database: Store
    manifest: Manifest
    queries: EmbedJob
    search: NeighborSearchConfig
    target: Store

    @property
    def ledger(self) -> Ledger:
        """Markers of the blocks."""
        return self.queries.ledger

    @property
    def schema(self) -> pa.Schema:
        """Columns of a fragment."""
        search, dim = self.search, self.manifest.dim
        return neighbors_schema(search.num_neighbors, dim, embeddings=search.store_embeddings, boxes=search.store_boxes)


def search_blocks(job: SearchJob, workers: SearchWorkersConfig, num_queries: int) -> float:
    """Runs the blocks that are not committed yet; returns when every block is: the queries a second of this run."""
    blocks = job.queries.blocks
    missing = job.ledger.missing(range(len(blocks)))
    done = num_queries - sum(_size(job, number) for number in missing)
    if not missing:
        return 0.0
    quiet_ray_data()
    ray.data.DataContext.get_current().execution_options.preserve_order = False
    numbers = ray.data.from_items([{"number": n} for n in missing], override_num_blocks=len(missing))
    read = numbers.map(ReadQueries(job), num_cpus=workers.task_cpus)
    if job.queries.encoder is not None:
        arguments = (job.queries.encoder, workers.encoder_threads)
        encoders = encoder_pool(workers, len(missing))
        read = read.map(EmbedBlock, fn_constructor_args=arguments, **encoders)  # type: ignore[arg-type]
    searchers = min(workers.searchers or max(1, num_cpus() // 2), len(missing))
    pool = ray.data.ActorPoolStrategy(size=searchers, max_tasks_in_flight_per_actor=2)
    options: dict[str, Any] = {"compute": pool, "num_cpus": workers.searcher_cpus}
    found = read.map(SearchBlock, fn_constructor_args=(job,), **options)  # type: ignore[arg-type]
    with Progress("neighbours", num_queries, "queries", done=done) as progress:
        try:
            for result in found.iter_rows():
                progress.advance(_size(job, int(result["number"])))
        except Exception as error:
            raise plain_error(error) from error
        return progress.rate


class ReadQueries:
    """{number} → {number, rows (Arrow IPC, without images), pixels, report}."""

    def __init__(self, job: SearchJob) -> None:
        self._job, self._read = job.queries, ReadBlock(job.queries)
        self._columns = [*_QUERY_COLUMNS, *job.queries.fields]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        block = self._job.blocks[int(item["number"])]
        if isinstance(block, BaseRows):
            columns = [*self._columns, *(["embedding"] if self._job.dim is not None else [])]
            scanner = open_rows(block.store).scanner(
                columns=columns, offset=block.first, limit=block.stop - block.first, scan_in_order=True
            )
            return {
                **item,
                "rows": _pack(scanner.to_table()),
                "pixels": b"",
                "shape": "[]",
                "report": '{"failures": []}',
            }
        read = self._read(item)
        return {**read, "rows": _pack(_unpack(read["rows"]).drop_columns(["image"]))}


class SearchBlock:
    """Actor: finds the neighbours of a block, writes them by similarity, then commits; yields {number}."""

    def __init__(self, job: SearchJob) -> None:
        self._job = job
        self._database = Database.open_unpublished(job.database, job.manifest)
        rows = Identities.of_database(self._database)
        search = job.search
        self._finder = NeighborFinder(
            self._database, rows, search.num_neighbors, search.exclude, search.where, search.same
        )

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        number, table, shape = int(item["number"]), _unpack(item["rows"]), json.loads(item["shape"])
        embeddings_BD = np.frombuffer(item["pixels"], dtype=np.float32).reshape(shape) if shape else None
        files: list[FileRecord] = []
        report: dict[str, Any] = {
            "queries": len(table),
            "failures": json.loads(item["report"])["failures"],
            "fragments": {},
            "incomplete": {},
        }
        for similarity in self._job.search.similarities if len(table) else ():
            queries = QueryBatch.of_table(table, embeddings_BD, self._job.search.same)
            hits = self._finder.by_clip(queries) if similarity == "clip" else self._finder.by_bm25(queries)
            written = self._columns(table.column("key").to_pylist(), hits, similarity)
            fragment, records = write_fragment(self._job.target.child(similarity), written)
            report["fragments"][similarity] = fragment
            report["incomplete"][similarity] = int((hits.ids == PAD_ID).any(axis=1).sum())
            files += [FileRecord(f"{similarity}/{r.path}", r.bytes, r.sha256) for r in records]
        self._job.ledger.commit(Marker(number, tuple(files), report))
        return {"number": number}

    def _columns(self, keys: list[str], hits: Hits, similarity: Similarity) -> pa.Table:
        search, k = self._job.search, self._job.search.num_neighbors
        columns = [
            pa.array(keys, pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(hits.ids.reshape(-1)), k),
            pa.FixedSizeListArray.from_arrays(pa.array(hits.scores.reshape(-1)), k),
            pa.array([similarity] * len(keys), pa.string()),
        ]
        if search.store_embeddings:
            columns.append(embedding_array(self._embeddings(hits.ids)))
        if search.store_boxes:
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(self._boxes(hits.ids).reshape(-1)), 4 * k))
        return pa.Table.from_arrays(columns, schema=self._job.schema)

    def _embeddings(self, ids_BK: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw embeddings (B, K·D) of the neighbours; zeros where padded."""
        embeddings_BKD = np.zeros((*ids_BK.shape, self._database.dim), dtype=np.float32)
        found_BK = ids_BK != PAD_ID
        embeddings_BKD[found_BK] = self._database.embeddings(ids_BK[found_BK])
        return embeddings_BKD.reshape(len(ids_BK), -1)

    def _boxes(self, ids_BK: NDArray[np.int64]) -> NDArray[np.int32]:
        """Patch boxes (B, K, 4) of the neighbours; NO_BOX where there is none."""
        unique, inverse = np.unique(ids_BK, return_inverse=True)
        rows = unique[unique != PAD_ID]
        column = self._database.dataset.take(rows.tolist(), columns=["box"]).column("box").combine_chunks()
        boxes_U4 = np.full((len(unique), 4), NO_BOX, dtype=np.int32)
        has_box = np.zeros(len(unique), dtype=bool)
        has_box[unique != PAD_ID] = column.is_valid().to_numpy(zero_copy_only=False)
        boxes_U4[has_box] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        return boxes_U4[inverse.reshape(ids_BK.shape)]


def _size(job: SearchJob, number: int) -> int:
    block = job.queries.blocks[number]
    return block.stop - (block.first if isinstance(block, BaseRows) else block.start)


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _unpack(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
