"""Builds one database version: list → embed → assemble → verify → publish.

A build killed at any moment is restarted by running it again: finished blocks stay, the manifest comes last, and
nothing is readable before it. The version's id follows from source, configuration and encoder, so that the same build
finds itself.
"""

import getpass
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import lance
import numpy as np
from numpy.typing import NDArray

import remembrandt
from remembrandt.data.records import Source, SourceBlock
from remembrandt.data.sources import open_source
from remembrandt.data.sources.common import Exclusions, key_digests
from remembrandt.databases.accounting import compare_with_plan, plan_build_capacity
from remembrandt.databases.assemble import RowsReport, assemble_bm25, assemble_rows, assemble_vectors, collect_blocks
from remembrandt.databases.bm25 import ElasticsearchLoader
from remembrandt.databases.cache import check_files, local_file
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.embed import BaseRows, EmbedJob, Excluded, embed_blocks
from remembrandt.databases.manifest import (
    FAILURES,
    MANIFEST,
    TRAINED_INDEX,
    Document,
    Manifest,
    SourceInfo,
    VectorsInfo,
    decode_document,
    digest,
    encode_document,
    sorted_files,
)
from remembrandt.databases.neighbor_blocks import SearchWorkersConfig
from remembrandt.databases.neighbor_queries import Queries
from remembrandt.databases.neighbors import compute_neighbors
from remembrandt.databases.rows import BASE_COLUMNS, open_rows, row_schema, take_embeddings
from remembrandt.databases.vectors import RecallReport, ShardFile, VectorIndex, plan_vectors, tune
from remembrandt.databases.verify import verify_version
from remembrandt.distributed import connect
from remembrandt.encoders.base import Fingerprint, normalise
from remembrandt.encoders.resolution import ResolvedModel, resolve
from remembrandt.errors import ConfigError, EncoderMismatchError, ServiceError, SourceError
from remembrandt.progress import format_bytes, format_seconds, say
from remembrandt.storage import Store
from remembrandt.storage.ledger import FileRecord, Ledger, describe_file

_SHOWN_FAILURES = 5
_AUTO_BLOCK_BYTES = 8 * 1024 * 1024
_AUTO_BLOCK_ITEMS = (64, 4096)
_AUTO_BLOCKS = 4096
_QUERY_SEED = 20
_ID_DIGITS = 12
_BEGUN, _CONTENT = "begun.json", "content"


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, found without writing anything."""

    catalog: Catalog
    version: str
    source: Source | None
    base: Manifest | None
    encoder: ResolvedModel | None
    blocks: tuple[SourceBlock | BaseRows, ...]
    items: int
    fields: tuple[str, ...]
    dim: int | None
    source_fingerprint: str
    begun: "Begun"


class Begun(Document):
    """What a build was begun with, so that whoever goes on with it does the same.

    Attributes:
        content: digest of all that the rows and the index follow from.
        block_size: items of a block of the source; `base_block_size`, rows of one of the base version.
    """

    content: str
    block_size: int
    base_block_size: int


@dataclass
class Clock:
    """Seconds spent in each stage, for the report."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, work: Callable[[], Any]) -> Any:
        """Runs `work` and books its time under `stage`."""
        start = time.monotonic()
        result = work()
        self.seconds[stage] = round(time.monotonic() - start, 3)
        return result


def build_database(config: BuildConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Builds, checks and publishes a version; returns its report (plain values, JSON-able).

    Raises:
        RemembrandtError: anything that the user can mend; the live version is untouched then.
    """
    plan = plan_build(config)
    if dry_run:
        return _describe_plan(config, plan)
    if plan.catalog.version_store(plan.version).exists(MANIFEST):
        return _already_built(config, plan)
    _check_services(config)
    connect()
    clock = Clock()
    plan.catalog.build_store(plan.version).write(_BEGUN, encode_document(plan.begun))
    capacity = plan_build_capacity(config, plan.source, plan.items, plan.dim)
    owner = _Owner(plan.catalog.build_store(plan.version))
    report = clock.run("embed", lambda: _embed(config, plan))
    owner.check()
    manifest = _assemble(config, plan, report, clock)
    compared = compare_with_plan(capacity, manifest, clock.seconds)
    planned = capacity.to_json() if capacity else {}
    manifest = manifest.model_copy(update={"planned": planned, "actual": {"seconds": dict(clock.seconds)}})
    if config.neighbors is not None:
        manifest = clock.run("neighbors", lambda: _with_neighbors(config, plan, manifest))
    owner.check()
    store = plan.catalog.version_store(plan.version)
    checked = clock.run("verify", lambda: verify_version(store, manifest, hash_files=False, bm25=config.bm25))
    store.write(MANIFEST, encode_document(manifest))
    _publish(config, plan, manifest)
    plan.catalog.store.delete_tree(f"builds/{plan.version}")
    return {**_report(manifest, checked.checks, clock, report), "compared_with_plan": compared}


def plan_build(config: BuildConfig) -> BuildPlan:
    """Lists the source, resolves encoder and base version, and checks what can be checked before any work.

    Raises:
        ConfigError, SourceError, StorageError, EncoderMismatchError, VersionError: with the remedy.
    """
    if config.source is None and config.base is None:
        raise ConfigError("nothing to build from: set `source`, or `base` to derive from an existing version")
    catalog = Catalog.open(config.uri)
    catalog.store.check_writable()
    base = (
        None
        if config.base is None
        else catalog.manifest(catalog.current() if config.base == "current" else config.base)
    )
    encoder = None if config.encoder is None else resolve(config.encoder)
    source = None if config.source is None else open_source(config.source)
    _check_base(base, encoder, catalog)
    fingerprint = source.fingerprint() if source else "none"
    parts = [fingerprint, encoder.fingerprint.digest if encoder else "none", base.version if base else "none"]
    if config.neighbors is not None:
        train_set = config.neighbors.train_set
        parts.append("self" if train_set == "self" else Queries.open(train_set).fingerprint())
    content = config.content_digest(*parts)
    version = config.version or content[:_ID_DIGITS]
    begun = _begun(catalog, version, content) or Begun(
        content=content,
        block_size=_block_size(config, source, encoder),
        base_block_size=_AUTO_BLOCK_ITEMS[1] if config.workers.block_size == "auto" else config.workers.block_size,
    )
    blocks: list[SourceBlock | BaseRows] = [
        *_base_blocks(catalog, base, begun.base_block_size),
        *(source.blocks(begun.block_size) if source else []),
    ]
    items = sum(block.stop - (block.first if isinstance(block, BaseRows) else block.start) for block in blocks)
    fields = sorted({*(source.field_names if source else ()), *(base.fields if base else ())})
    if own := sorted({*BASE_COLUMNS, "embedding"} & {*fields}):
        raise ConfigError(f"'{own[0]}' is a column of every database and cannot be a field: take it out of `fields`")
    dim = _dim(source, encoder, base)
    return BuildPlan(
        catalog, version, source, base, encoder, tuple(blocks), items, tuple(fields), dim, fingerprint, begun
    )


def embed_job(config: BuildConfig, plan: BuildPlan) -> EmbedJob:
    """What the workers of the first stage need to know."""
    base_store = plan.catalog.version_store(plan.base.version) if plan.base else None
    needs_encoder = plan.encoder is not None and not (plan.source is not None and plan.source.has_embeddings)
    return EmbedJob(
        store=plan.catalog.version_store(plan.version),
        ledger=Ledger(plan.catalog.build_store(plan.version), f"blocks-{len(plan.blocks)}"),
        source=plan.source,
        blocks=plan.blocks,
        decode=config.decode,
        patches=config.patches,
        excluded=_excluded(config, base_store),
        fields=plan.fields,
        dim=plan.dim,
        encoder=config.encoder if needs_encoder else None,
        pixel_transform=plan.encoder.pixel_transform if needs_encoder and plan.encoder else None,
    )


def _embed(config: BuildConfig, plan: BuildPlan) -> RowsReport:
    job = embed_job(config, plan)
    embed_blocks(job, config.workers, plan.items)
    report = collect_blocks(job.ledger)
    _check_failures(config, report)
    return report


def _assemble(config: BuildConfig, plan: BuildPlan, report: RowsReport, clock: Clock) -> Manifest:
    store, builds = plan.catalog.version_store(plan.version), plan.catalog.build_store(plan.version)
    schema = row_schema(plan.fields, plan.dim)
    dataset = clock.run("rows", lambda: assemble_rows(store, Ledger(builds, "rows"), schema, report))
    files = list(report.files)
    vectors = recall = None
    if plan.dim is not None:
        vectors, recall, written = clock.run(
            "vectors", lambda: _vectors(config, plan, store, builds, dataset, report.rows)
        )
        files += written
    index = index_name(plan.catalog, plan.version)
    bm25, written_bm25 = clock.run(
        "bm25", lambda: assemble_bm25(store, builds, config.bm25, index, report.rows, plan.fields)
    )
    files += written_bm25
    if report.failures:
        store.write(FAILURES, "".join(json.dumps(f, ensure_ascii=False) + "\n" for f in report.failures).encode())
    files = _all_files(store, files)
    return Manifest(
        name=plan.catalog.name,
        version=plan.version,
        parent=plan.base.version if plan.base else None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        created_by={"user": _user(), "remembrandt": remembrandt.__version__, _CONTENT: plan.begun.content},
        rows=report.rows,
        dim=plan.dim,
        fields=plan.fields,
        licences=report.licences,
        source=SourceInfo(
            config=config.source.model_dump(mode="json") if config.source else {},
            fingerprint=plan.source_fingerprint,
            records=report.items,
            failed=len(report.failures),
        ),
        encoder=_encoder_identity(plan),
        vectors=vectors,
        bm25=asdict(bm25) if bm25 else None,
        recall=asdict(recall) if recall else None,
        planned={},
        actual={},
        config=config.model_dump(mode="json"),
        files=sorted_files(files),
    )


def _vectors(
    config: BuildConfig, plan: BuildPlan, store: Store, builds: Store, dataset: lance.LanceDataset, rows: int
) -> tuple[VectorsInfo, RecallReport, list[FileRecord]]:
    assert plan.dim is not None
    vector_plan = plan_vectors(rows, plan.dim, config.vectors)
    rng = np.random.default_rng(_QUERY_SEED)
    sampled = np.sort(rng.choice(rows, size=min(config.gate.num_queries, rows), replace=False))
    queries_QD = normalise(take_embeddings(dataset, sampled))
    k = min(config.gate.recall_at, rows)
    device = config.vectors.device
    shards, files, truth = assemble_vectors(store, builds, vector_plan, dataset, queries_QD, k, _QUERY_SEED, device)

    def fetch(ids_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return normalise(take_embeddings(dataset, ids_N))

    records = {file.path: file for file in files}
    index = VectorIndex.open(
        vector_plan,
        local_file(store, records[TRAINED_INDEX]),
        [ShardFile(local_file(store, records[s.path]), s.first_id, s.rows) for s in shards],
        fetch=fetch,
        device=device,
    )
    tuned, recall = tune(index, queries_QD, truth, config.gate.recall_floor, k, fetch)
    return VectorsInfo(plan=tuned.to_json(), shards=shards), recall, list(files)


def _with_neighbors(config: BuildConfig, plan: BuildPlan, manifest: Manifest) -> Manifest:
    """Adds the neighbours of the configured train set, and the proposal, to the files of the version."""
    assert config.neighbors is not None
    store, train_set = plan.catalog.version_store(plan.version), config.neighbors.train_set
    own = Queries({"kind": "self"}, rows=store, manifest=manifest)
    queries = own if train_set == "self" else Queries.open(train_set)
    info = compute_neighbors(
        store,
        manifest,
        queries,
        config.neighbors,
        store,
        "neighbors",
        plan.catalog.build_store(plan.version).child("neighbors"),
        encoder=config.encoder,
        decode=config.decode,
        workers=SearchWorkersConfig(**config.workers.model_dump()),
        max_failed_share=config.gate.max_failed_share,
    )
    files = sorted_files(_all_files(store, manifest.file_records))
    return manifest.model_copy(update={"neighbors": info, "files": files})


def index_name(catalog: Catalog, version: str) -> str:
    """The Elasticsearch index of a version."""
    return f"{alias_name(catalog)}-{version}".lower()


def alias_name(catalog: Catalog) -> str:
    """The Elasticsearch alias of a database, which points at the live version's index.

    Databases of one name at different places may share a cluster: the place is part of the alias.
    """
    return f"remembrandt-{catalog.name}-{digest(catalog.store.uri.encode())[:8]}".lower()


def _publish(config: BuildConfig, plan: BuildPlan, manifest: Manifest) -> None:
    if not config.publish:
        return
    plan.catalog.publish(plan.version)
    if manifest.bm25 is not None and manifest.bm25["backend"] == "elasticsearch":
        ElasticsearchLoader(config.bm25, manifest.bm25["index"]).move_alias(alias_name(plan.catalog))


def _already_built(config: BuildConfig, plan: BuildPlan) -> dict[str, Any]:
    """The same build was finished before: check its files, make it live if asked, and say so."""
    manifest = plan.catalog.manifest(plan.version)
    if manifest.created_by.get(_CONTENT, plan.begun.content) != plan.begun.content:
        raise _taken(plan.catalog, plan.version)
    check_files(plan.catalog.version_store(plan.version), manifest.file_records)
    _publish(config, plan, manifest)
    say(f"version {plan.version} of {plan.catalog.store.uri} is built already from the same source and configuration")
    return _report(manifest, ("built before; files as in the manifest",), Clock(), None)


def _check_services(config: BuildConfig) -> None:
    if config.bm25.backend == "elasticsearch":
        ElasticsearchLoader(config.bm25, "remembrandt-check").ping()


def _check_base(base: Manifest | None, encoder: ResolvedModel | None, catalog: Catalog) -> None:
    if base is None:
        return
    check_files(catalog.version_store(base.version), base.file_records)
    if base.fingerprint != (encoder.fingerprint if encoder else None):
        raise EncoderMismatchError(
            f"version {base.version} of {catalog.store.uri} was embedded with {base.fingerprint}, "
            f"and this build uses {encoder.fingerprint if encoder else None}: append with the same encoder"
        )


def _dim(source: Source | None, encoder: ResolvedModel | None, base: Manifest | None) -> int | None:
    if source is not None and source.has_embeddings:
        found = _embedding_size(source)
        if encoder is not None and encoder.dim != found:
            raise EncoderMismatchError(
                f"the source brings {found}-dimensional embeddings and encoder {encoder.name} makes {encoder.dim}: "
                "name the encoder that made them, or set encoder: null"
            )
        if base is not None and base.dim != found:
            raise EncoderMismatchError(
                f"the source brings {found}-dimensional embeddings and version {base.version} has {base.dim}: append "
                "what the same encoder made"
            )
        return found
    return base.dim if base else encoder.dim if encoder else None


def _embedding_size(source: Source) -> int:
    """Of the first record that has an embedding."""
    problem = ""
    for block in source.blocks(_AUTO_BLOCK_ITEMS[1]):
        for record in source.read(block):
            if record.embedding is not None:
                return len(record.embedding)
            problem = problem or f", e.g. '{record.key}': {record.problem or 'missing'}"
    raise SourceError(f"the source should bring embeddings, but none of its items has one{problem}")


def _begun(catalog: Catalog, version: str, content: str) -> Begun | None:
    """What an unfinished build of this version was begun with.

    Raises:
        ConfigError: with something else.
    """
    builds = catalog.build_store(version)
    if not builds.exists(_BEGUN):
        return None
    begun = decode_document(Begun, builds.read(_BEGUN), f"{builds.uri}/{_BEGUN}")
    if begun.content != content:
        raise _taken(catalog, version)
    return begun


def _taken(catalog: Catalog, version: str) -> ConfigError:
    return ConfigError(
        f"version '{version}' of {catalog.store.uri} was begun from another source or configuration: restore them, or "
        "set `version` to another name"
    )


def _user() -> str:
    """Who builds; in a container of any user id, the id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _encoder_identity(plan: BuildPlan) -> dict[str, str] | None:
    if plan.encoder is not None:
        fingerprint: Fingerprint | None = plan.encoder.fingerprint
    else:
        fingerprint = plan.base.fingerprint if plan.base else None
    return asdict(fingerprint) if fingerprint else None


def _base_blocks(catalog: Catalog, base: Manifest | None, size: int) -> list[BaseRows]:
    if base is None:
        return []
    store = catalog.version_store(base.version)
    return [BaseRows(store, first, min(first + size, base.rows)) for first in range(0, base.rows, size)]


def _block_size(config: BuildConfig, source: Source | None, encoder: ResolvedModel | None) -> int:
    """Items a block: as many as keep its pixels near 8 MB, so that a kill costs little and no worker is long the last
    one at work; more where the source is so large that there would be too many blocks.
    """
    if config.workers.block_size != "auto":
        return config.workers.block_size
    if source is None or encoder is None or source.has_embeddings:
        return _AUTO_BLOCK_ITEMS[1]
    transform = encoder.pixel_transform
    per_image = config.patches.per_image[1] if config.patches.mode == "patches" else 1
    per_item = transform.height * transform.width * 3 * per_image
    items = sum(block.stop - block.start for block in source.blocks(_AUTO_BLOCK_ITEMS[1]))
    return int(np.clip(max(_AUTO_BLOCK_BYTES // per_item, items // _AUTO_BLOCKS), *_AUTO_BLOCK_ITEMS))


def _excluded(config: BuildConfig, base_store: Store | None) -> Excluded:
    digests: NDArray[np.uint64] = np.empty(0, np.uint64)
    if base_store is not None:
        keys = open_rows(base_store).to_table(columns=["key"]).column("key").to_pylist()
        digests = np.sort(key_digests(keys))
    return Excluded(Exclusions.load(config.exclude), frozenset(config.exclude.ids), digests)


def _check_failures(config: BuildConfig, report: RowsReport) -> None:
    for failure in report.failures[:_SHOWN_FAILURES]:
        say(f"left out {failure['key']}: {failure['problem']}")
    if len(report.failures) > _SHOWN_FAILURES:
        say(f"… and {len(report.failures) - _SHOWN_FAILURES:,} more (all are listed in {FAILURES} of the version)")
    share = len(report.failures) / max(report.items, 1)
    if share > config.gate.max_failed_share:
        first = report.failures[0]
        raise SourceError(
            f"{len(report.failures):,} of {report.items:,} items ({share:.1%}) cannot be used, e.g. "
            f"{first['key']}: {first['problem']}; "
            f"mend the source, or allow more with gate.max_failed_share (now {config.gate.max_failed_share})"
        )
    if report.rows == 0:
        raise SourceError(
            f"no usable item is left of {report.items:,} ({report.excluded:,} excluded): nothing to build"
        )


def _all_files(store: Store, known: list[FileRecord]) -> list[FileRecord]:
    """Every file of the version with its digest; only those without a commit marker are read for it."""
    records = {file.path: file for file in known}
    return [
        records.get(entry.path) or describe_file(store, entry.path) for entry in store.files() if entry.path != MANIFEST
    ]


class _Owner:
    """Notices when another run of the same build has started: the later run goes on, the earlier one stops."""

    def __init__(self, builds: Store) -> None:
        self._builds, self._token = builds, uuid.uuid4().hex.encode()
        builds.write("owner", self._token)

    def check(self) -> None:
        """Raises ServiceError if this run is no longer the one in charge."""
        if not self._builds.exists("owner") or self._builds.read("owner") != self._token:
            raise ServiceError("another run of the same build has taken over: this one stops here, and nothing is lost")


def _describe_plan(config: BuildConfig, plan: BuildPlan) -> dict[str, Any]:
    done = plan.catalog.version_store(plan.version).exists(MANIFEST)
    return {
        "dry_run": True,
        "uri": plan.catalog.store.uri,
        "version": plan.version,
        "already_built": done,
        "items": plan.items,
        "blocks": len(plan.blocks),
        "base": plan.base.version if plan.base else None,
        "encoder": str(plan.encoder.fingerprint) if plan.encoder else None,
        "vectors": plan_vectors(plan.items, plan.dim, config.vectors).to_json() if plan.dim else None,
        "bm25": config.bm25.backend,
    }


def _report(manifest: Manifest, checks: tuple[str, ...], clock: Clock, report: RowsReport | None) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "rows": manifest.rows,
        "bytes": manifest.total_bytes,
        "failed": manifest.source.failed,
        "excluded": report.excluded if report else 0,
        "already_in_base": report.in_base if report else 0,
        "factory": manifest.vectors.plan["factory"] if manifest.vectors else None,
        "recall": manifest.recall,
        "seconds": clock.seconds,
        "checks": list(checks),
    }


def format_report(report: dict[str, Any]) -> str:
    """The build's report for a person."""
    if report.get("dry_run"):
        return "\n".join(f"{key}: {value}" for key, value in report.items())
    lines = [
        f"database {report['name']}, version {report['version']}: {report['rows']:,} rows, "
        f"{format_bytes(report['bytes'])}"
    ]
    if report["failed"]:
        lines.append(f"  left out: {report['failed']:,} items (see {FAILURES})")
    if report["already_in_base"]:
        lines.append(f"  kept from the base: {report['already_in_base']:,} items were there already")
    lines += [f"  ok  {check}" for check in report["checks"]]
    lines += [f"  plan  {line}" for line in report.get("compared_with_plan", [])]
    lines += [f"  {stage}: {format_seconds(seconds)}" for stage, seconds in report["seconds"].items()]
    return "\n".join(lines)
