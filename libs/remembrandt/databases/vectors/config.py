"""What a user may say about the vector index, and the plan that follows from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from pydantic import ByteSize, field_validator

from remembrandt.configuration import Config
from remembrandt.databases.vectors.factory import parse_factory
from remembrandt.errors import ConfigError, VersionError

Backend = Literal["faiss", "scann"]
Device = Literal["auto", "cpu", "gpu"]


class VectorConfig(Config):
    """How embeddings are indexed.

    Attributes:
        backend: `faiss` for any size; `scann` for databases that fit one machine.
        factory: `auto` chooses from row count and `memory_budget`; anything else is a FAISS index factory string, such
            as `Flat`, `IVF4096,SQ8` or `OPQ64_256,IVF65536_HNSW32,PQ64`.
        memory_budget: what all shards of the index together may occupy once they are resident, such as `8GB`.
        shard_rows: rows a shard; `auto` makes at most 64 shards, of at least 125,000 rows.
        train_rows: rows of the sample that centroids and codes are trained on.
        rerank: candidates fetched from the row store per requested result and scored exactly; 0 turns it off.
        device: of training and building: `auto` uses GPUs where FAISS sees them; `gpu` insists. Searches are `auto`.
        seed: of every random choice in training.
    """

    backend: Backend = "faiss"
    factory: str = "auto"
    memory_budget: ByteSize = ByteSize(8_000_000_000)
    shard_rows: int | Literal["auto"] = "auto"
    train_rows: int | Literal["auto"] = "auto"
    rerank: int | Literal["auto"] = "auto"
    device: Device = "auto"
    seed: int = 0

    @field_validator("factory")
    @classmethod
    def _check_factory(cls, factory: str) -> str:
        if factory != "auto":
            try:
                parse_factory(factory)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return factory

    @field_validator("shard_rows", "train_rows")
    @classmethod
    def _check_rows(cls, rows: int | str) -> int | str:
        if isinstance(rows, int) and rows < 1:
            raise ValueError("must be at least 1, or 'auto'")
        return rows

    @field_validator("rerank")
    @classmethod
    def _check_rerank(cls, rerank: int | str) -> int | str:
        if isinstance(rerank, int) and rerank < 0:
            raise ValueError("must be 0 or more, or 'auto'")
        return rerank


@dataclass(frozen=True)
class VectorPlan:
    """Everything that building, opening and searching an index needs to know; stored in the manifest.

    Attributes:
        backend: `faiss` or `scann`.
        factory: FAISS index factory string (`scann` has none and says `ScaNN`).
        dim: embedding size D.
        rows: rows of the whole database.
        shard_rows: rows of every shard but the last.
        num_shards: how many shards.
        train_rows: rows of the training sample.
        rerank: exact re-ranking scores rerank × k candidates from the row store; 0 = none.
        nprobe: inverted lists (ScaNN: leaves) visited a query.
        ef_search: breadth of the graph search in HNSW parts; 0 where there is none.
        bytes_per_row: of the codes and the id.
        memory_bytes: resident size of the whole index in one process once every page has been touched.
        disk_bytes: size of all its files.
        seed: of training.
    """

    backend: Backend
    factory: str
    dim: int
    rows: int
    shard_rows: int
    num_shards: int
    train_rows: int
    rerank: int
    nprobe: int
    ef_search: int
    bytes_per_row: int
    memory_bytes: int
    disk_bytes: int
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            VersionError: a key is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if names != set(values):
            raise VersionError(
                f"the manifest's vector plan has keys {sorted(set(values) ^ names)} more or less than this version of "
                "remembrandt knows: open it with the version that built it, or rebuild"
            )
        return cls(**values)
