"""Precomputes the neighbours of a train set, and the proposal p_D that they give (P1 §3.3 Eq. 5, §E.3; P2 §3.2).

Queries are read and embedded exactly as a build does it, in numbered blocks; each block is searched, written as a
fragment and committed. A killed run is restarted by running it again. Letters: K neighbours, N rows.
"""

import io
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from lance import LanceDataset
from numpy.typing import NDArray
from pydantic import Field

from remembrandt import encoders
from remembrandt.configuration import Config, nearest
from remembrandt.data.decode import DecodeConfig
from remembrandt.data.patches import PatchConfig
from remembrandt.data.records import SourceBlock
from remembrandt.data.sources import SourceConfig
from remembrandt.data.sources.common import Exclusions
from remembrandt.databases.cache import check_files
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.embed import BaseRows, EmbedJob, Excluded
from remembrandt.databases.hits import PAD_ID
from remembrandt.databases.manifest import (
    FAILURES,
    MANIFEST,
    Manifest,
    NeighborsInfo,
    decode_document,
    digest,
    encode_document,
    sorted_files,
)
from remembrandt.databases.neighbor_blocks import NeighborSearchConfig, SearchJob, SearchWorkersConfig, search_blocks
from remembrandt.databases.neighbor_dataset import (
    PROPOSAL,
    Neighbors,
    NeighborsManifest,
    SearchedDatabase,
    flat_values,
    identity_of,
)
from remembrandt.databases.neighbor_queries import DatabaseRowsConfig, Queries, query_encoder
from remembrandt.databases.rows import commit_rows
from remembrandt.distributed import connect
from remembrandt.encoders import EncoderConfig
from remembrandt.errors import ConfigError, SearchError, SourceError
from remembrandt.progress import format_seconds, say
from remembrandt.storage import Store, open_store, split_uri
from remembrandt.storage.ledger import FileRecord, Ledger, Marker, describe_file

__all__ = [
    "DatabaseRowsConfig",
    "NeighborSearchConfig",
    "Neighbors",
    "PrecomputeConfig",
    "Queries",
    "SearchWorkersConfig",
    "compute_neighbors",
    "format_report",
    "precompute_neighbors",
]

_AUTO_BLOCK_BYTES = 32 * 1024 * 1024
_AUTO_BLOCK_ITEMS = (64, 4096)
_SHOWN_FAILURES = 5


class PrecomputeConfig(Config):
    """One run of `jobs/precompute_neighbors.py`.

    Attributes:
        database: `<root>/<name>`; `version` None: the live one.
        train_set: a source of images or texts, or `kind: database`.
        out: a new folder or `s3://…` for the result.
        encoder: for images that bring no embeddings; None: the one that the database was built with.
        max_failed_share: of items that cannot be used; above it, the run fails.
    """

    database: str
    train_set: Annotated[SourceConfig | DatabaseRowsConfig, Field(discriminator="kind")]
    out: str
    version: str | None = None
    search: NeighborSearchConfig = NeighborSearchConfig()
    encoder: EncoderConfig | None = None
    decode: DecodeConfig = DecodeConfig()
    max_failed_share: float = Field(0.05, ge=0, le=1)
    workers: SearchWorkersConfig = SearchWorkersConfig()


@dataclass(frozen=True)
class _Plan:
    """One computation: what is searched, by which queries, where it goes."""

    searched: SearchedDatabase
    store: Store
    manifest: Manifest
    queries: Queries
    search: NeighborSearchConfig
    encoder: EncoderConfig | None
    decode: DecodeConfig
    out: Store
    identity: str

    def blocks(self, workers: SearchWorkersConfig) -> list[SourceBlock | BaseRows]:
        """The queries in blocks."""
        return self.queries.blocks(self._block_size(workers))

    def kept_blocks(self, workers: SearchWorkersConfig, builds: Store) -> list[SourceBlock | BaseRows]:
        """The queries in blocks of the size that the computation was begun with; kept at `builds`."""
        name = f"{self.identity}.block_size"
        if not builds.exists(name):
            builds.write(name, str(self._block_size(workers)).encode())
        return self.queries.blocks(int(builds.read(name)))

    def _block_size(self, workers: SearchWorkersConfig) -> int:
        """As many queries a block as keep its pixels near 32 MB."""
        if workers.block_size != "auto":
            return workers.block_size
        if self.encoder is None:
            return _AUTO_BLOCK_ITEMS[1]
        transform = encoders.pixel_transform_of(self.encoder)
        per_item = transform.height * transform.width * 3
        return int(np.clip(_AUTO_BLOCK_BYTES // per_item, *_AUTO_BLOCK_ITEMS))


def precompute_neighbors(config: PrecomputeConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Finds and stores the neighbours of a train set; returns a report (plain values, JSON-able).

    Raises:
        VersionError: no such database or version.
        EncoderMismatchError: the queries' encoder is not the one that embedded the database.
        SearchError: k larger than the database, or no index of the kind that is asked for.
        ConfigError: `out` holds something else.
        SourceError: the train set is empty or too damaged.
    """
    catalog = Catalog.open(config.database)
    manifest = catalog.live_manifest() if config.version is None else catalog.manifest(config.version)
    published = digest(encode_document(manifest))
    out, store = open_store(config.out), catalog.version_store(manifest.version)
    queries = Queries.open(config.train_set)
    plan = _plan(
        store, manifest, catalog.store.uri, published, queries, config.search, config.encoder, config.decode, out
    )
    done = _finished(plan)
    blocks = plan.blocks(config.workers)
    if done is not None or dry_run:
        return _report(plan, done, blocks)
    out.check_writable()
    check_files(store, manifest.file_records)
    parent, name = split_uri(out.uri)
    builds = open_store(parent).child(f".{name}.building")
    start = time.monotonic()
    document, rate = _compute(plan, builds, config.workers, config.max_failed_share)
    builds.delete_tree("")
    spent = {"seconds": round(time.monotonic() - start, 3), "queries_per_second": round(rate, 1)}
    return _report(plan, document, blocks) | spent


def compute_neighbors(
    store: Store,
    manifest: Manifest,
    queries: Queries,
    search: NeighborSearchConfig,
    target: Store,
    prefix: str,
    builds: Store,
    *,
    encoder: EncoderConfig | None = None,
    decode: DecodeConfig | None = None,
    workers: SearchWorkersConfig | None = None,
    max_failed_share: float = 0.05,
) -> NeighborsInfo:
    """Neighbours in a version that need not be published, nor its manifest be written, yet.

    Args:
        store, manifest: the version that is searched; `manifest.files` must name its files already.
        target: the result goes to `<target>/<prefix>`, its own manifest last; `Neighbors.open` reads it there.
        builds: where commit markers lie; the caller removes them when all is done.

    Returns:
        What a database's manifest says of the result; paths are relative to `target`. The proposal is the one of the
        first similarity.
    """
    out = target.child(prefix)
    plan = _plan(store, manifest, store.uri, None, queries, search, encoder, decode or DecodeConfig(), out)
    document = _finished(plan) or _compute(plan, builds, workers or SearchWorkersConfig(), max_failed_share)[0]
    return NeighborsInfo(
        path=prefix,
        proposal=f"{prefix}/{search.similarities[0]}/{PROPOSAL}",
        num_neighbors=search.num_neighbors,
        queries=document.queries,
        train_set=queries.config,
    )


def _plan(
    store: Store, manifest: Manifest, uri: str, published: str | None, queries: Queries, search: NeighborSearchConfig,
    encoder: EncoderConfig | None, decode: DecodeConfig, out: Store,
) -> _Plan:  # fmt: skip
    """Everything that can be known before any work, checked."""
    _check_search(manifest, search)
    needed = query_encoder(manifest, queries, encoder) if "clip" in search.similarities else None
    searched = SearchedDatabase(
        uri=uri,
        name=manifest.name,
        version=manifest.version,
        rows=manifest.rows,
        dim=manifest.dim,
        manifest_sha256=published,
    )
    # Files that an interrupted run left in a version under construction belong to nobody yet.
    own = [asdict(r) for r in manifest.file_records if not f"{store.uri}/{r.path}".startswith(f"{out.uri}/")]
    identity = identity_of(
        published or own, queries.fingerprint(), search.model_dump(mode="json"), decode.model_dump(mode="json")
    )
    return _Plan(searched, store, manifest, queries, search, needed, decode, out, identity)


def _check_search(manifest: Manifest, search: NeighborSearchConfig) -> None:
    if search.num_neighbors > manifest.rows:
        raise SearchError(
            f"num_neighbors {search.num_neighbors} is too many: database '{manifest.name}' has {manifest.rows:,} rows"
        )
    if manifest.vectors is None and ("clip" in search.similarities or search.store_embeddings):
        raise SearchError(
            f"database '{manifest.name}' holds texts only: set similarities to [bm25], without store_embeddings"
        )
    columns = ("licence", "group", *manifest.fields)
    if search.same is not None and search.same.column not in columns:
        raise SearchError(
            f"database '{manifest.name}' has no column '{search.same.column}' that neighbours could share: "
            f"{nearest(search.same.column, columns)}"
        )
    if manifest.bm25 is None and "bm25" in search.similarities:
        raise SearchError(f"database '{manifest.name}' was built without BM25: set similarities to [clip]")


def _finished(plan: _Plan) -> NeighborsManifest | None:
    """What a former run of the same computation left, if it was finished.

    Raises:
        ConfigError: something else lies there.
    """
    out = plan.out
    if not out.exists(MANIFEST):
        known = tuple(f"{similarity}/" for similarity in ("clip", "bm25"))
        foreign = [entry.path for entry in out.files() if not entry.path.startswith(known) and entry.path != FAILURES]
        if foreign:
            raise ConfigError(f"{out.uri} is in use already (it holds {foreign[0]}): choose a new folder for `out`")
        return None
    document = decode_document(NeighborsManifest, out.read(MANIFEST), f"{out.uri}/{MANIFEST}")
    if document.identity != plan.identity:
        raise ConfigError(
            f"{out.uri} holds neighbours of another database, train set or search: choose a new folder for `out`"
        )
    check_files(out, [FileRecord(**file) for file in document.files])
    return document


def _compute(
    plan: _Plan, builds: Store, workers: SearchWorkersConfig, max_failed_share: float
) -> tuple[NeighborsManifest, float]:
    """What was computed, and the queries a second of this run."""
    blocks = plan.kept_blocks(workers, builds)
    clip = "clip" in plan.search.similarities
    ledger = Ledger(builds, f"{plan.identity}-{len(blocks)}")
    queries = EmbedJob(
        store=plan.out,
        ledger=ledger,
        source=plan.queries.source,
        blocks=tuple(blocks),
        decode=plan.decode,
        patches=PatchConfig(),
        excluded=Excluded(Exclusions(frozenset(), frozenset(), frozenset()), frozenset(), np.empty(0, np.uint64)),
        fields=(plan.search.same.column,) if plan.search.same else (),
        dim=plan.manifest.dim if clip else None,
        encoder=plan.encoder,
        pixel_transform=encoders.pixel_transform_of(plan.encoder) if plan.encoder else None,
    )
    job = SearchJob(plan.store, plan.manifest, queries, plan.search, plan.out)
    connect()
    rate = search_blocks(job, workers, _count(blocks))
    markers = [marker for _, marker in sorted(ledger.committed().items())]
    failures = [failure for marker in markers for failure in marker.report["failures"]]
    num_queries = sum(marker.report["queries"] for marker in markers)
    _check_failures(failures, num_queries, max_failed_share)
    for similarity in {"clip", "bm25"} - set(plan.search.similarities):
        plan.out.delete_tree(similarity)
    for similarity in plan.search.similarities:
        steps = Ledger(builds, f"{plan.identity}-{similarity}")
        if steps.missing([0]):
            target = plan.out.child(similarity)
            fragments = [marker.report["fragments"][similarity] for marker in markers if marker.report["fragments"]]
            dataset = commit_rows(target, job.schema, fragments)
            target.write(
                PROPOSAL, _npy(proposal_of(dataset, plan.manifest.rows, num_queries * plan.search.num_neighbors))
            )
            steps.commit(Marker(0, (), {}))
    if failures:
        plan.out.write(FAILURES, "".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures).encode())
    document = _document(plan, markers, num_queries, len(failures))
    plan.out.write(MANIFEST, encode_document(document))
    return document, rate


def proposal_of(dataset: LanceDataset, rows: int, total: int) -> NDArray[np.float64]:
    """p_D(x̃) = |{x ∈ X : x̃ ∈ ξ_k(x, D)}| / (k·|X|) (P1 Eq. 5), (N,).

    It adds up to 1, or to less where queries have fewer than k neighbours.

    Args:
        rows: N.
        total: k·|X|.
    """
    counts_N = np.zeros(rows, dtype=np.int64)
    for batch in dataset.scanner(columns=["ids"]).to_batches():
        ids = flat_values(batch, "ids")
        counts_N += np.bincount(ids[ids != PAD_ID], minlength=rows)
    return counts_N / total


def _document(plan: _Plan, markers: list[Marker], num_queries: int, failed: int) -> NeighborsManifest:
    known = {file.path: file for marker in markers for file in marker.files}
    entries = [entry for entry in plan.out.files() if entry.path != MANIFEST]
    reports = [marker.report["incomplete"] for marker in markers]
    short: dict[str, int] = {s: sum(report.get(s, 0) for report in reports) for s in plan.search.similarities}
    return NeighborsManifest(
        identity=plan.identity,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        database=plan.searched,
        encoder=plan.manifest.encoder,
        train_set=plan.queries.config,
        train_set_fingerprint=plan.queries.fingerprint(),
        queries=num_queries,
        failed=failed,
        num_neighbors=plan.search.num_neighbors,
        similarities=plan.search.similarities,
        exclude=plan.search.exclude,
        where=plan.search.where,
        same=plan.search.same,
        embeddings=plan.search.store_embeddings,
        boxes=plan.search.store_boxes,
        incomplete=short,
        files=sorted_files([known.get(entry.path) or describe_file(plan.out, entry.path) for entry in entries]),
    )


def _check_failures(failures: list[dict[str, str]], num_queries: int, max_failed_share: float) -> None:
    for failure in failures[:_SHOWN_FAILURES]:
        say(f"left out {failure['key']}: {failure['problem']}")
    if len(failures) > _SHOWN_FAILURES:
        say(f"… and {len(failures) - _SHOWN_FAILURES:,} more (all are listed in {FAILURES} of the result)")
    items = len(failures) + num_queries
    share = len(failures) / max(items, 1)
    if share > max_failed_share or not num_queries:
        first = f", e.g. {failures[0]['key']}: {failures[0]['problem']}" if failures else ""
        raise SourceError(
            f"{len(failures):,} of {items:,} items of the train set cannot be used ({share:.1%}){first}; "
            f"mend it, or allow more with max_failed_share (now {max_failed_share:g})"
        )


def _count(blocks: list[SourceBlock | BaseRows]) -> int:
    return sum(block.stop - (block.first if isinstance(block, BaseRows) else block.start) for block in blocks)


def _npy(array: NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _report(plan: _Plan, document: NeighborsManifest | None, blocks: list[SourceBlock | BaseRows]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "out": plan.out.uri,
        "database": plan.searched.uri,
        "version": plan.searched.version,
        "rows": plan.searched.rows,
        "items": _count(blocks),
        "blocks": len(blocks),
        "num_neighbors": plan.search.num_neighbors,
        "similarities": list(plan.search.similarities),
        "encoder": plan.encoder.model if plan.encoder else None,
        "finished": document is not None,
    }
    if document is not None:
        report |= {"queries": document.queries, "failed": document.failed, "incomplete": document.incomplete}
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report for a person."""
    if not report["finished"]:
        return "\n".join(f"{key}: {value}" for key, value in report.items())
    k = report["num_neighbors"]
    lines = [f"neighbours at {report['out']}: {k} of {report['rows']:,} rows for each of {report['queries']:,} queries"]
    if report["failed"]:
        lines.append(f"  left out: {report['failed']:,} items (see {FAILURES})")
    lines += [f"  {count:,} queries have fewer than {k} by {s}" for s, count in report["incomplete"].items() if count]
    if "seconds" in report:
        rate = f"{report['queries_per_second']:,} queries/s, start-up included"
        lines.append(f"  {format_seconds(report['seconds'])}, {rate if report['queries_per_second'] else 'resumed'}")
    else:
        lines.append("  computed before; files are as in its manifest")
    return "\n".join(lines)
