"""What a database needs: shards, memory, disk and time. Pure: sizes and rates in, figures out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from remembrandt.databases.planning.rates import Rates
from remembrandt.databases.vectors.building import OPQ_ITERATIONS, OPQ_TRAIN_ROWS, PQ_ITERATIONS
from remembrandt.databases.vectors.clustering import ITERATIONS, REFINEMENTS, TWO_LEVEL_LISTS
from remembrandt.databases.vectors.config import VectorConfig, VectorPlan
from remembrandt.databases.vectors.factory import Factory, parse_factory
from remembrandt.databases.vectors.plan import plan_vectors
from remembrandt.progress import format_bytes, format_seconds

TEXT_BYTES = 300
"""Of a row beside image and embedding: key, captions, sizes, licence, a few fields."""
GATE_QUERIES = 200
OPQ_ROUNDS = 4
_MEASURED_LISTS = 16_384
POD_BYTES = 3 * 2**30
"""Of a retrieval pod beside the vectors. Measured resident: an actor with its libraries 0.4 GB, a process with an
encoder of queries 1.1 GB, Ray's raylet and agents 0.4 GB; the rest is for Serve's proxy and answers on their way."""
POD_CORES = 2
"""One that searches, one for Ray and Serve."""
OBJECT_STORE_SHARE = 0.3
"""Of a pod's memory, which Ray takes for its object store unless told otherwise."""
POD_DISK_SLACK = 1.1
TABLE_ROWS = (10**6, 10**7, 10**8, 10**9)


@dataclass(frozen=True)
class Workload:
    """What is to be built, and on what.

    Attributes:
        rows: rows N.
        dim: embedding size D.
        encoder: model name, None where embeddings are ready.
        image_bytes: mean size of a stored image.
        bm25: whether captions are indexed in the embedded backend.
        cores: that build in parallel.
        gpus: that embed.
        actors: retrieval actors that share the shards.
    """

    rows: int
    dim: int
    encoder: str | None = None
    image_bytes: int = 0
    bm25: bool = True
    cores: int = 1
    gpus: int = 0
    actors: int = 1


@dataclass(frozen=True)
class PodRequest:
    """What one retrieval pod asks Kubernetes for, as quantities that a manifest takes.

    Attributes:
        cpu: cores.
        memory: request and limit, so that nothing else may take it: a searching pod does not shrink.
        cache: size of the volume behind `REMEMBRANDT_CACHE`, where remote files of the version are kept.
    """

    cpu: str
    memory: str
    cache: str


@dataclass(frozen=True)
class CapacityPlan:
    """What a database will need.

    Attributes:
        workload: what was planned for.
        vectors: the index.
        fits: whether the index fits the memory budget.
        memory_per_actor: resident bytes that searching adds to the largest actor.
        train_bytes: of the sample that one task holds while it trains.
        rows_bytes, vectors_bytes, bm25_bytes: on disk.
        seconds: wall time by build stage.
        core_seconds: processor time of all stages.
        search_ms: of one query, one actor after another on one core.
    """

    workload: Workload
    vectors: VectorPlan
    fits: bool
    memory_per_actor: int
    train_bytes: int
    rows_bytes: int
    vectors_bytes: int
    bm25_bytes: int
    seconds: Mapping[str, float]
    core_seconds: float
    search_ms: float

    @property
    def disk_bytes(self) -> int:
        """All files of the version."""
        return self.rows_bytes + self.vectors_bytes + self.bm25_bytes

    @property
    def build_seconds(self) -> float:
        """Wall time of the whole build."""
        return sum(self.seconds.values())

    @property
    def pod(self) -> PodRequest:
        """Of each retrieval pod, with one actor in it; the fullest counts, since any of them may hold rows and BM25."""
        actors = max(1, self.workload.actors)
        memory = (self.memory_per_actor + POD_BYTES) / (1 - OBJECT_STORE_SHARE)
        shards = math.ceil(self.vectors.num_shards / actors) / self.vectors.num_shards
        embeddings = 2 * self.workload.dim * self.workload.rows
        cache = POD_DISK_SLACK * (self.vectors_bytes * shards + self.bm25_bytes + embeddings)
        return PodRequest(cpu=str(POD_CORES), memory=_gibibytes(memory), cache=_gibibytes(cache))

    def to_json(self) -> dict[str, Any]:
        """A plain mapping with the totals, and what a retrieval pod asks for."""
        totals = {"disk_bytes": self.disk_bytes, "build_seconds": self.build_seconds}
        return {**asdict(self), **totals, "pod": asdict(self.pod)}


@dataclass(frozen=True)
class Outcome:
    """What a build really took; None where it was not measured.

    Attributes:
        seconds: wall time by stage, with the names of the plan's stages.
    """

    rows: int
    seconds: Mapping[str, float]
    rows_bytes: int | None = None
    vectors_bytes: int | None = None
    bm25_bytes: int | None = None
    memory_bytes: int | None = None


def plan_capacity(workload: Workload, config: VectorConfig, rates: Rates) -> CapacityPlan:
    """Plans a build. An index larger than `config.memory_budget` is planned all the same, and marked.

    Raises:
        ConfigError: no rows, or a given factory that cannot hold them.
    """
    vectors = plan_vectors(workload.rows, workload.dim, config, over_budget=True)
    embed_core, embed_wall = _embed_seconds(workload, rates)
    train, add = _train_seconds(vectors, rates), _add_seconds(vectors, rates)
    documents = workload.rows / rates.documents_per_second if workload.bm25 else 0.0
    lanes = min(workload.cores, vectors.num_shards)
    return CapacityPlan(
        workload=workload,
        vectors=vectors,
        fits=vectors.memory_bytes <= config.memory_budget,
        memory_per_actor=_memory_per_actor(vectors, workload.actors),
        train_bytes=4 * workload.dim * vectors.train_rows,
        rows_bytes=workload.rows * (workload.image_bytes + 2 * workload.dim + TEXT_BYTES),
        vectors_bytes=vectors.disk_bytes,
        bm25_bytes=round(workload.rows * rates.document_bytes) if workload.bm25 else 0,
        seconds={"embed": embed_wall, "vectors": train + add / lanes, "bm25": documents},
        core_seconds=embed_core + train + add + documents,
        search_ms=1000 * _search_seconds(vectors, rates),
    )


def cost_table(workload: Workload, config: VectorConfig, rates: Rates) -> list[CapacityPlan]:
    """The same database at 10⁶ … 10⁹ rows."""
    automatic = config.model_copy(update={"factory": "auto", "shard_rows": "auto"})
    return [plan_capacity(replace(workload, rows=rows), automatic, rates) for rows in TABLE_ROWS]


def compare(plan: CapacityPlan, actual: Outcome) -> list[str]:
    """Lines that put what was planned beside what a build took."""
    lines = [_line("rows", f"{plan.workload.rows:,}", f"{actual.rows:,}", plan.workload.rows, actual.rows)]
    for name, planned in plan.seconds.items():
        if name in actual.seconds:
            spent = actual.seconds[name]
            lines.append(_line(name, format_seconds(planned), format_seconds(spent), planned, spent))
    sizes = {
        "row store": (plan.rows_bytes, actual.rows_bytes),
        "vectors": (plan.vectors_bytes, actual.vectors_bytes),
        "bm25": (plan.bm25_bytes, actual.bm25_bytes),
        "memory": (plan.memory_per_actor, actual.memory_bytes),
    }
    for name, (planned_bytes, taken) in sizes.items():
        if taken is not None and planned_bytes:
            lines.append(_line(f"{name} size", format_bytes(planned_bytes), format_bytes(taken), planned_bytes, taken))
    return lines


def _gibibytes(size: float) -> str:
    return f"{math.ceil(size / 2**30)}Gi"


def _line(name: str, planned: str, actual: str, planned_value: float, actual_value: float) -> str:
    ratio = f" ({actual_value / planned_value:.2f} ×)" if planned_value else ""
    return f"{name}: planned {planned}, took {actual}{ratio}"


def _embed_seconds(workload: Workload, rates: Rates) -> tuple[float, float]:
    """Core seconds, and wall seconds where GPUs run beside the cores."""
    row_bytes = workload.image_bytes + 2 * workload.dim + TEXT_BYTES
    cpu = workload.rows * row_bytes / rates.row_bytes_per_second
    if workload.encoder is None:
        return cpu, cpu / workload.cores
    rate = rates.encoders[workload.encoder]
    cpu += workload.rows / rates.decode_per_second
    forward = workload.rows / rate.images_per_second
    if rate.on_gpu:
        return cpu, rate.start_seconds + max(cpu / workload.cores, forward / max(1, workload.gpus))
    return cpu + forward, rate.start_seconds + (cpu + forward) / workload.cores


def _train_seconds(plan: VectorPlan, rates: Rates) -> float:
    """On one core: clustering compares every sampled row with every centroid in every iteration."""
    if plan.backend == "scann":
        return 0.0
    factory = parse_factory(plan.factory)
    two_level = factory.lists >= TWO_LEVEL_LISTS
    comparisons = plan.train_rows * factory.lists * (REFINEMENTS if two_level else ITERATIONS)
    if two_level:
        comparisons += 2 * ITERATIONS * plan.train_rows * round(factory.lists**0.5)
    seconds = 2 * comparisons * factory.stored_dim(plan.dim) / rates.flops
    pairs = min(plan.train_rows, OPQ_TRAIN_ROWS) * 256 * factory.pq_m
    rounds = PQ_ITERATIONS + (OPQ_ROUNDS * OPQ_ITERATIONS + OPQ_ITERATIONS if factory.opq_m else 0)
    return seconds + pairs * rounds / rates.pq_pairs_per_second


def _add_seconds(plan: VectorPlan, rates: Rates) -> float:
    """Core seconds: read, rotate, find the list, encode; and the gate's exact search over all rows."""
    factory = parse_factory(plan.factory) if plan.backend == "faiss" else _scann_like(plan)
    stored = factory.stored_dim(plan.dim)
    per_row = 2 * plan.dim / rates.read_bytes_per_second
    per_row += 2 * plan.dim * GATE_QUERIES / rates.flops
    per_row += 2 * plan.dim * stored / rates.flops if factory.transform else 0.0
    if factory.coarse_m or factory.graph_m:
        nodes = factory.lists or plan.shard_rows
        growth = math.log2(max(nodes, 2)) / math.log2(_MEASURED_LISTS)
        per_row += stored * growth / rates.graph_values_per_second
    elif factory.lists:
        per_row += 2 * stored * factory.lists / rates.flops
    codec = "PQ" if factory.pq_m else factory.codec if factory.codec in rates.code_values_per_second else "SQ8"
    return plan.rows * (per_row + stored / rates.code_values_per_second[codec])


def _search_seconds(plan: VectorPlan, rates: Rates) -> float:
    """One query on one core: nearest centroids, then the bytes of the lists that are visited."""
    factory = parse_factory(plan.factory) if plan.backend == "faiss" else _scann_like(plan)
    if not factory.lists:
        return plan.rows * plan.bytes_per_row / rates.scan_bytes_per_second
    stored = factory.stored_dim(plan.dim)
    coarse = math.log2(factory.lists) * 64 if factory.coarse_m else factory.lists
    scanned = plan.rows * plan.nprobe / factory.lists * plan.bytes_per_row
    return (4 * coarse * stored + scanned) / rates.scan_bytes_per_second


def _memory_per_actor(plan: VectorPlan, actors: int) -> int:
    """The largest share of the shards, and what every actor holds of the trained index."""
    if plan.backend == "scann":
        return plan.memory_bytes
    shared = parse_factory(plan.factory).trained_bytes(plan.dim)
    shards = math.ceil(plan.num_shards / max(1, actors))
    return shared + round((plan.memory_bytes - shared) * shards / plan.num_shards)


def _scann_like(plan: VectorPlan) -> Factory:
    """ScaNN's work in FAISS terms: partitions, 4-bit codes of pairs of values."""
    return Factory(plan.factory, None, None, None, max(1, round(plan.rows**0.5)), 0, 0, "PQ")
