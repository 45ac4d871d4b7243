"""The manifest of a database version, and the pointer that says which version is live.

Both files are canonical JSON with their own checksum: a single altered byte makes them unreadable, and says so.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from remembrandt.encoders.base import Fingerprint
from remembrandt.errors import CorruptionError, VersionError
from remembrandt.storage.ledger import FileRecord

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CURRENT = "current"
ROWS = "rows.lance"
FAILURES = "failures.jsonl"
TRAINED_INDEX = "vectors/trained.faiss"


class Document(BaseModel):
    """A frozen record of plain values that is stored as checksummed JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class SourceInfo(Document):
    """Where the rows came from: configuration, fingerprint of the listing, and what could not be used."""

    config: dict[str, Any]
    fingerprint: str
    records: int
    failed: int


class ShardInfo(Document):
    """One vector shard: its file below the version, and the ids `first_id` … `first_id + rows - 1` it holds."""

    path: str
    first_id: int
    rows: int


class VectorsInfo(Document):
    """How the vectors are indexed. Search uses normalised vectors; conditioning the raw ones of the row store."""

    plan: dict[str, Any]
    metric: str = "cosine"
    search_embedding: str = "normalised"
    conditioning_embedding: str = "raw"
    shards: tuple[ShardInfo, ...]


class NeighborsInfo(Document):
    """Neighbours of a train set stored with the version, and the proposal p_D that they give (P1 Eq. 5)."""

    path: str
    proposal: str
    num_neighbors: int
    queries: int
    train_set: dict[str, Any]


class Manifest(Document):
    """Everything that is known of one immutable version."""

    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    parent: str | None = None
    created_at: str
    created_by: dict[str, str]
    rows: int
    dim: int | None
    fields: tuple[str, ...]
    licences: dict[str, int]
    source: SourceInfo
    encoder: dict[str, str] | None
    vectors: VectorsInfo | None
    bm25: dict[str, Any] | None
    recall: dict[str, Any] | None
    neighbors: NeighborsInfo | None = None
    planned: dict[str, Any]
    actual: dict[str, Any]
    config: dict[str, Any]
    files: tuple[dict[str, Any], ...]

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of the encoder that embedded the rows; None for text-only databases."""
        return Fingerprint(**self.encoder) if self.encoder else None

    @property
    def file_records(self) -> list[FileRecord]:
        """All files but the manifest itself, sorted by path."""
        return [FileRecord(**file) for file in self.files]

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.file_records)


class Pointer(Document):
    """What `current` says: the live version, its manifest's digest, and what was live before (newest last)."""

    version: str
    manifest_sha256: str
    history: tuple[str, ...] = ()


DocumentT = TypeVar("DocumentT", bound=Document)


def encode_document(document: Document) -> bytes:
    """Canonical JSON with a checksum over everything else."""
    body = document.model_dump(mode="json")
    return _canonical({**body, "checksum": _checksum(body)})


def decode_document(cls: type[DocumentT], data: bytes, place: str) -> DocumentT:
    """Parses what `encode_document` wrote.

    Raises:
        CorruptionError: not byte for byte what was written; names `place`.
        VersionError: written by a newer Remembrandt.
    """
    try:
        body = json.loads(data)
        checksum = body.pop("checksum")
        intact = checksum == _checksum(body) and _canonical({**body, "checksum": checksum}) == data
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
        body = {}
    if not intact:
        raise CorruptionError(
            f"{place} is damaged (its checksum does not match): restore it, or publish another version"
        )
    if body.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise VersionError(
            f"{place} has schema version {body['schema_version']}, and this Remembrandt reads up to "
            f"{SCHEMA_VERSION}: upgrade it"
        )
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        raise CorruptionError(f"{place} does not hold a {cls.__name__.lower()}: {error.errors()[0]['msg']}") from None


def sorted_files(files: list[FileRecord]) -> tuple[dict[str, Any], ...]:
    """File records as the manifest stores them."""
    return tuple(asdict(file) for file in sorted(files))


def digest(data: bytes) -> str:
    """SHA-256 hex digest."""
    return hashlib.sha256(data).hexdigest()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _checksum(body: Mapping[str, Any]) -> str:
    return digest(_canonical(body))
