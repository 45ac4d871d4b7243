"""From row count, embedding size and configuration to a `VectorPlan`: sizes in, sizes out, nothing touched."""

import math

from remembrandt.databases.vectors.config import VectorConfig, VectorPlan
from remembrandt.databases.vectors.factory import (
    FILE_HEADER_BYTES,
    TRAIN_ROWS_PER_LIST,
    Factory,
    check_factory,
    choose_factory,
    num_leaves,
    parse_factory,
)
from remembrandt.errors import ConfigError
from remembrandt.progress import format_bytes

MIN_SHARD_ROWS = 125_000
MAX_SHARDS = 64
PQ_RERANK = 10
PQ_TRAIN_ROWS = 20_000
SQ_TRAIN_ROWS = 10_000
MANY_TRAIN_ROWS = 10_000_000
"""Training holds its sample in the memory of one machine: above this, fewer rows a list have to do."""
LEAST_TRAIN_ROWS_PER_LIST = 16
START_NPROBE = 16
EF_SEARCH = 64


def plan_vectors(rows: int, dim: int, config: VectorConfig, *, over_budget: bool = False) -> VectorPlan:
    """Plans the index of a database. Search parameters are a start that `tune` replaces.

    Args:
        rows: rows of the whole database.
        dim: embedding size D.
        config: the user's wishes.
        over_budget: plan the smallest index even if it does not fit into `config.memory_budget`.

    Raises:
        ConfigError: no rows, a factory that cannot hold them, or a budget that none fits.
    """
    if rows < 1 or dim < 1:
        raise ConfigError(f"cannot plan an index of {rows} rows with {dim} dimensions: give at least one of each")
    if config.backend == "scann":
        return _plan_scann(rows, dim, config)
    shard_rows = _shard_rows(rows, config)
    num_shards = math.ceil(rows / shard_rows)
    factory = _factory(rows, dim, num_shards, config, over_budget)
    size = factory.index_bytes(rows, dim, num_shards)
    return VectorPlan(
        backend="faiss",
        factory=factory.text,
        dim=dim,
        rows=rows,
        shard_rows=shard_rows,
        num_shards=num_shards,
        train_rows=_train_rows(factory, rows, config),
        rerank=(PQ_RERANK if factory.pq_m else 0) if config.rerank == "auto" else config.rerank,
        nprobe=min(START_NPROBE, factory.lists),
        ef_search=EF_SEARCH if factory.coarse_m or factory.graph_m else 0,
        bytes_per_row=factory.bytes_per_row(dim),
        memory_bytes=size,
        disk_bytes=size,
        seed=config.seed,
    )


def _factory(rows: int, dim: int, num_shards: int, config: VectorConfig, over_budget: bool) -> Factory:
    if config.factory != "auto":
        factory = parse_factory(config.factory)
        check_factory(factory, rows, dim)
        return factory
    factory, fits = choose_factory(rows, dim, config.memory_budget, num_shards)
    if not fits and not over_budget:
        least = format_bytes(factory.index_bytes(rows, dim, num_shards))
        raise ConfigError(
            f"vectors.memory_budget {format_bytes(config.memory_budget)} is too small for {rows:,} rows of {dim} "
            f"dimensions: the smallest index ({factory.text}) takes {least}; raise vectors.memory_budget"
        )
    return factory


def _shard_rows(rows: int, config: VectorConfig) -> int:
    if config.shard_rows != "auto":
        return min(config.shard_rows, rows)
    return min(rows, max(MIN_SHARD_ROWS, math.ceil(rows / MAX_SHARDS)))


def _train_rows(factory: Factory, rows: int, config: VectorConfig) -> int:
    if factory.codec == "Flat" and not factory.lists and not factory.transform:
        return min(rows, 1)
    if config.train_rows != "auto":
        wanted = max(config.train_rows, factory.lists)
    else:
        codes = PQ_TRAIN_ROWS if factory.pq_m or factory.transform else SQ_TRAIN_ROWS
        enough = max(MANY_TRAIN_ROWS, factory.lists * LEAST_TRAIN_ROWS_PER_LIST)
        wanted = max(min(factory.lists * TRAIN_ROWS_PER_LIST, enough), codes)
    return min(rows, wanted)


def _plan_scann(rows: int, dim: int, config: VectorConfig) -> VectorPlan:
    """One machine, one piece: 4-bit anisotropic codes to scan and fp32 vectors to re-order by."""
    if config.factory != "auto":
        raise ConfigError("vectors.factory is FAISS's: leave it out with vectors.backend=scann")
    leaves = num_leaves(rows)
    bytes_per_row = dim // 4 + 4 * dim + 8
    size = rows * bytes_per_row + leaves * dim * 4 + FILE_HEADER_BYTES
    if size > config.memory_budget:
        raise ConfigError(
            f"vectors.memory_budget {format_bytes(config.memory_budget)} is too small for ScaNN, which takes "
            f"{format_bytes(size)} for {rows:,} rows of {dim} dimensions: raise it or use vectors.backend=faiss"
        )
    return VectorPlan(
        backend="scann",
        factory=f"ScaNN{leaves}" if leaves else "ScaNN",
        dim=dim,
        rows=rows,
        shard_rows=rows,
        num_shards=1,
        train_rows=1,
        rerank=0,
        nprobe=leaves // 20,
        ef_search=0,
        bytes_per_row=bytes_per_row,
        memory_bytes=size,
        disk_bytes=size,
        seed=config.seed,
    )
