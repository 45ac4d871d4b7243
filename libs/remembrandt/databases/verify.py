"""The gate: what must hold of a version before it goes live, and `db verify` at any later time."""

from dataclasses import dataclass

import numpy as np

from remembrandt.databases.assemble import document_text
from remembrandt.databases.bm25 import Bm25Config
from remembrandt.databases.bm25.analysis import analyze
from remembrandt.databases.cache import check_files
from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter
from remembrandt.databases.manifest import Manifest
from remembrandt.errors import GateError
from remembrandt.storage import Store

_SAMPLED_ROWS = 64
_SAMPLED_DOCUMENTS = 16


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, one line a check, each with its figure."""

    checks: tuple[str, ...]


def verify_version(
    store: Store,
    manifest: Manifest,
    *,
    recall_floor: float | None = None,
    hash_files: bool = True,
    bm25: Bm25Config | None = None,
) -> VerifyReport:
    """Checks a version from files to answers.

    Args:
        recall_floor: what the recorded recall must reach; None: the floor in the version's own configuration.
        hash_files: hash every file (always done by `db verify`; a build has just hashed what it wrote).
        bm25: how Elasticsearch is reached; None: as `Database.open` does.

    Raises:
        CorruptionError: a damaged file, by name.
        GateError: counts, ids or recall that do not hold, with the figures.
    """
    check_files(store, manifest.file_records, hash_all=hash_files, sizes_only=not hash_files)
    checks = [
        f"{len(manifest.files)} files, {manifest.total_bytes:,} bytes: {'SHA-256' if hash_files else 'sizes'} "
        "as in the manifest"
    ]
    floor = recall_floor if recall_floor is not None else float(manifest.config["gate"]["recall_floor"])
    with Database.open_unpublished(store, manifest, bm25) as database:
        checks.append(_check_row_ids(database))
        if manifest.vectors is not None:
            checks += [_check_shards(manifest), _check_vectors(database), _check_recall(manifest, floor)]
        if manifest.bm25 is not None:
            checks.append(_check_bm25(database))
    return VerifyReport(tuple(checks))


def _check_row_ids(database: Database) -> str:
    expected = 0
    for batch in database.dataset.scanner(columns=["id"], scan_in_order=True).to_batches():
        ids = batch.column("id").to_numpy()
        if not np.array_equal(ids, np.arange(expected, expected + len(ids))):
            raise GateError(
                f"row ids are not dense: near row {expected:,} the row store holds {ids[:3].tolist()}…; build "
                "the version anew"
            )
        expected += len(ids)
    if expected != database.num_rows:
        raise GateError(
            f"the row store has {expected:,} rows and the manifest {database.num_rows:,}; build the version anew"
        )
    return f"{expected:,} rows with dense ids"


def _check_shards(manifest: Manifest) -> str:
    assert manifest.vectors is not None
    stop = 0
    for shard in manifest.vectors.shards:
        if shard.first_id != stop:
            raise GateError(
                f"vector shard {shard.path} starts at row {shard.first_id:,} instead of {stop:,}; build the "
                "version anew"
            )
        stop += shard.rows
    if stop != manifest.rows:
        raise GateError(
            f"the vector shards hold {stop:,} rows and the row store {manifest.rows:,}; build the version anew"
        )
    return f"{len(manifest.vectors.shards)} vector shards cover all rows"


def _check_vectors(database: Database) -> str:
    """Row i of the index must be row i of the row store: a row's own embedding finds it, or an equal one."""
    ids = _sample(database.num_rows, _SAMPLED_ROWS)
    hits = database.search_embeddings(database.embeddings(ids), 1)
    found = database.embeddings(np.maximum(hits.ids[:, 0], 0))
    wanted = database.embeddings(ids)
    cosine = (found * wanted).sum(1) / np.maximum(np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1), 1e-12)
    good = float(((hits.ids[:, 0] == ids) | (cosine > 0.999)).mean())
    if good < 0.9:
        raise GateError(
            f"only {good:.0%} of {len(ids)} sampled rows find themselves in the vector index; build the version anew"
        )
    return f"{good:.0%} of {len(ids)} sampled rows find themselves in the vector index"


def _check_recall(manifest: Manifest, floor: float) -> str:
    recall = manifest.recall or {}
    value, k = float(recall.get("recall", 0.0)), recall.get("k")
    if value < floor:
        raise GateError(
            f"recall@{k} is {value:.4f} and the floor {floor}: raise vectors.memory_budget or choose another "
            "vectors.factory; the live version has not changed"
        )
    return f"recall@{k} {value:.4f} against exact search (floor {floor})"


def _check_bm25(database: Database) -> str:
    """Row i of BM25 must be row i of the row store: a row's own text, narrowed to its key, finds it."""
    documents = int((database.manifest.bm25 or {})["documents"])
    if documents != database.num_rows:
        raise GateError(
            f"BM25 holds {documents:,} documents and the row store {database.num_rows:,} rows; build the version anew"
        )
    rows = database.rows(_sample(database.num_rows, _SAMPLED_DOCUMENTS), ["key", "caption", "captions"])
    for row in rows:
        text = document_text(row.caption, row.captions)
        hits = database.search_bm25([text], 1, Filter(equals={"key": (row.key,)}))
        if analyze(text) and hits.ids[0, 0] != row.id:
            raise GateError(
                f"BM25 finds row {hits.ids[0, 0]} for the text of row {row.id} ('{row.key}'); build the version anew"
            )
    return f"{documents:,} BM25 documents; {len(rows)} sampled rows are found under their own id"


def _sample(rows: int, size: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).choice(rows, size=min(size, rows), replace=False))
