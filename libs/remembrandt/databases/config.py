"""Configuration of a build (`jobs/build_index.py`)."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from remembrandt.configuration import Config
from remembrandt.data.decode import DecodeConfig
from remembrandt.data.patches import PatchConfig
from remembrandt.data.sources import SourceConfig
from remembrandt.data.sources.common import ExcludeConfig, Exclusions
from remembrandt.databases.bm25 import Bm25Config
from remembrandt.databases.neighbor_blocks import NeighborSearchConfig
from remembrandt.databases.vectors import VectorConfig
from remembrandt.databases.workers import WorkersConfig
from remembrandt.encoders import EncoderConfig


class ExcludeRowsConfig(ExcludeConfig):
    """Rows that must not be in the new version: of the source, and of the base version when appending.

    Attributes:
        ids: row ids of the base version.
    """

    ids: tuple[int, ...] = ()


class GateConfig(Config):
    """What a finished build must reach before it goes live.

    Attributes:
        queries: rows whose neighbours are compared with the exact ones. `auto`: the more, the higher the floor, so that
            the error of the measured recall does not ask for more search effort than the floor itself.
    """

    recall_floor: float = Field(0.95, ge=0, le=1)
    recall_at: int = Field(20, ge=1)
    queries: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    max_failed_share: float = Field(0.05, ge=0, le=1)

    @property
    def num_queries(self) -> int:
        """200 up to a floor of .95, 1,000 at .99, at most 2,000."""
        if self.queries != "auto":
            return self.queries
        return max(200, min(2000, round(10 / max(1 - self.recall_floor, 1e-9))))


class NeighborsConfig(NeighborSearchConfig):
    """Neighbours of a train set, to be stored with the version, and the proposal p_D that they give (P1 Eq. 5).

    Attributes:
        train_set: a source; or `self`, the version's own rows, for a database that is trained on itself.
    """

    train_set: SourceConfig | Literal["self"]


class BuildConfig(Config):
    """One database version: where it goes, what it is made of, how it is searched.

    `uri` is `<root>/<name>`, a path or `s3://…`. `base` appends to an existing version ('current' or its id): its rows
    keep their embeddings, and source items whose key is already there are skipped. `encoder: null` makes a text-only
    database.
    """

    uri: str
    source: SourceConfig | None = None
    base: str | None = None
    encoder: EncoderConfig | None = EncoderConfig()
    decode: DecodeConfig = DecodeConfig()
    patches: PatchConfig = PatchConfig()
    exclude: ExcludeRowsConfig = ExcludeRowsConfig()
    vectors: VectorConfig = VectorConfig()
    bm25: Bm25Config = Bm25Config()
    neighbors: NeighborsConfig | None = None
    gate: GateConfig = GateConfig()
    workers: WorkersConfig = WorkersConfig()
    version: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    publish: bool = True

    @field_validator("uri")
    @classmethod
    def _has_name(cls, uri: str) -> str:
        if not uri.strip("/"):
            raise ValueError("must name a database: <root>/<name>")
        return uri.rstrip("/")

    def content(self) -> dict[str, Any]:
        """What determines the rows and the index, and nothing else: the same content is the same version."""
        skip = {"uri", "workers", "gate", "publish", "version"}
        body = {key: value for key, value in self.model_dump(mode="json").items() if key not in skip}
        body["bm25"] = self.bm25.backend
        body["vectors"].pop("device")
        for machine in ("device", "batch_size", "threads"):
            (body["encoder"] or {}).pop(machine, None)
        body["exclude"] = [*Exclusions.load(self.exclude).describe(), sorted(self.exclude.ids)]
        return body

    def content_digest(self, *parts: str) -> str:
        """SHA-256 over the content and `parts`, the fingerprints of what it names."""
        return hashlib.sha256(json.dumps([self.content(), *parts], sort_keys=True).encode()).hexdigest()
