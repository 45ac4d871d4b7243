"""Whose neighbours are wanted: a source of images or texts, or the rows of a database version; and what embeds them."""

from dataclasses import dataclass
from typing import Any, Literal

from remembrandt import encoders
from remembrandt.configuration import Config
from remembrandt.data.records import Source, SourceBlock
from remembrandt.data.sources import SourceConfig, open_source
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.embed import BaseRows
from remembrandt.databases.manifest import Manifest, digest, encode_document
from remembrandt.encoders import EncoderConfig
from remembrandt.errors import ConfigError, EncoderMismatchError
from remembrandt.storage import Store


class DatabaseRowsConfig(Config):
    """The rows of a version as queries: KNN-ImageText searches its own set (P2 §3.2). `version` None: the live one."""

    kind: Literal["database"]
    uri: str
    version: str | None = None


@dataclass(frozen=True)
class Queries:
    """A train set: a source, or the rows of a version (`rows`, with `manifest`). `config` is how the user named it."""

    config: dict[str, Any]
    source: Source | None = None
    rows: Store | None = None
    manifest: Manifest | None = None

    @classmethod
    def open(cls, config: SourceConfig | DatabaseRowsConfig) -> "Queries":
        """Lists the source, or finds the version.

        Raises:
            SourceError, VersionError: nothing usable is there.
        """
        plain = config.model_dump(mode="json")
        if not isinstance(config, DatabaseRowsConfig):
            return cls(plain, source=open_source(config))
        catalog = Catalog.open(config.uri)
        manifest = catalog.live_manifest() if config.version is None else catalog.manifest(config.version)
        return cls(plain, rows=catalog.version_store(manifest.version), manifest=manifest)

    def fingerprint(self) -> str:
        """The same for an unchanged train set."""
        if self.source is not None:
            return self.source.fingerprint()
        assert self.manifest is not None
        return digest(encode_document(self.manifest))

    @property
    def bring_embeddings(self) -> bool:
        """Whether nothing needs encoding."""
        return self.source is None or self.source.has_embeddings

    def blocks(self, block_size: int) -> list[SourceBlock | BaseRows]:
        """Numbered pieces of at most `block_size` queries."""
        if self.source is not None:
            return list(self.source.blocks(block_size))
        assert self.rows is not None and self.manifest is not None
        starts = range(0, self.manifest.rows, block_size)
        return [BaseRows(self.rows, first, min(first + block_size, self.manifest.rows)) for first in starts]


def query_encoder(manifest: Manifest, queries: Queries, given: EncoderConfig | None) -> EncoderConfig | None:
    """What embeds the queries; None where they bring embeddings of the same encoder."""
    if queries.manifest is not None:
        theirs = queries.manifest
        if theirs.dim != manifest.dim or theirs.fingerprint != manifest.fingerprint:
            raise EncoderMismatchError(
                f"the rows of '{theirs.name}' were embedded with {theirs.fingerprint}, and database '{manifest.name}' "
                f"with {manifest.fingerprint}: build one of them anew"
            )
    if queries.bring_embeddings:
        return None
    config = given or (EncoderConfig.model_validate(e) if (e := manifest.config.get("encoder")) else None)
    if config is None:
        raise ConfigError(
            f"database '{manifest.name}' was built from ready embeddings: set `encoder` to the one that made them"
        )
    fingerprint = encoders.fingerprint_of(config)
    if manifest.fingerprint is not None and fingerprint != manifest.fingerprint:
        raise EncoderMismatchError(
            f"database '{manifest.name}' was embedded with {manifest.fingerprint}, "
            f"not with {fingerprint}: leave `encoder` out, or build the database anew"
        )
    return config
