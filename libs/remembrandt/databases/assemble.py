"""Second stage of a build: committed fragments become the row store, the vector shards and the BM25 index of a version.

Every step leaves a marker, so that a restarted build goes on where it was. Letters in names: N rows, D embedding,
Q sampled queries, K neighbours.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from remembrandt.databases.bm25 import Bm25Config, Bm25Document, Bm25Info, ElasticsearchLoader, build_embedded
from remembrandt.databases.hits import PAD_ID, Hits, top_k
from remembrandt.databases.manifest import TRAINED_INDEX, ShardInfo
from remembrandt.databases.rows import commit_rows, open_rows, scan_embeddings, take_embeddings
from remembrandt.databases.vectors import Device, VectorPlan, build_shard, train_index
from remembrandt.distributed import num_gpus, run_tasks
from remembrandt.encoders.base import normalise
from remembrandt.errors import SourceError
from remembrandt.progress import Progress, say
from remembrandt.storage import Store
from remembrandt.storage.ledger import FileRecord, Ledger, Marker, describe_file
from remembrandt.storage.local import LocalStore

_DOCUMENTS_PER_TASK = 200_000
_SCAN_DOCUMENTS = 4096


@dataclass(frozen=True)
class RowsReport:
    """What the first stage brought in: counts over all blocks, and the problems by key."""

    rows: int
    items: int
    excluded: int
    in_base: int
    failures: tuple[dict[str, str], ...]
    licences: dict[str, int]
    files: tuple[FileRecord, ...]
    fragments: tuple[dict[str, Any], ...]


def collect_blocks(ledger: Ledger) -> RowsReport:
    """Adds up the markers of all blocks in order."""
    markers = [marker for _, marker in sorted(ledger.committed().items())]
    reports = [marker.report for marker in markers]
    licences: dict[str, int] = {}
    for report in reports:
        for licence, count in report["licences"].items():
            licences[licence] = licences.get(licence, 0) + count
    return RowsReport(
        rows=sum(r["rows"] for r in reports),
        items=sum(r["items"] for r in reports),
        excluded=sum(r.get("excluded", 0) for r in reports),
        in_base=sum(r.get("in_base", 0) for r in reports),
        failures=tuple(failure for r in reports for failure in r["failures"]),
        licences=dict(sorted(licences.items())),
        files=tuple(file for marker in markers for file in marker.files),
        fragments=tuple(r["fragment"] for r in reports if r["fragment"] is not None),
    )


def assemble_rows(store: Store, steps: Ledger, schema: pa.Schema, report: RowsReport) -> lance.LanceDataset:
    """The row store with its id column; committed once, however often the build is restarted.

    Raises:
        SourceError: a key occurs twice.
    """
    if steps.missing([0]):
        dataset = commit_rows(store, schema, report.fragments)
        _check_keys(dataset)
        steps.commit(Marker(0, (), {"rows": report.rows}))
    return open_rows(store)


def assemble_vectors(
    store: Store,
    builds: Store,
    plan: VectorPlan,
    dataset: lance.LanceDataset,
    queries_QD: NDArray[np.float32],
    k: int,
    seed: int,
    device: Device = "auto",
) -> tuple[tuple[ShardInfo, ...], tuple[FileRecord, ...], Hits]:
    """Trains once on a sample, builds every shard, and finds the exact neighbours of the queries along the way.

    Neighbours are kept by what was asked for: a build that goes on with other queries finds theirs anew.

    Returns:
        The shards; their files with the trained index; the true `k` best rows of each query.
    """
    ledger, truths = Ledger(builds, "vectors"), Ledger(builds, f"truth-{seed}-{len(queries_QD)}-{k}")
    gpu = {"num_gpus": 1} if num_gpus() else {}
    if ledger.missing([0]):
        rng = np.random.default_rng(seed)
        sample = np.sort(rng.choice(plan.rows, size=min(plan.train_rows, plan.rows), replace=False))
        say(f"train {plan.factory} on {len(sample):,} vectors")
        list(run_tasks(_train, [(store, ledger, plan, sample, device)], num_cpus=1, **gpu))
    numbers = range(plan.num_shards)
    missing = ledger.missing(n + 1 for n in numbers)
    with Progress("index", plan.rows, "rows", done=plan.rows - sum(_span(plan, n - 1)[2] for n in missing)) as progress:
        arguments = [(store, ledger, truths, plan, number - 1, queries_QD, k, device) for number in missing]
        for position, _ in run_tasks(_build_shard, arguments, num_cpus=1, **gpu):
            progress.advance(_span(plan, missing[position] - 1)[2])
    unanswered = [(store, truths, plan, number, queries_QD, k) for number in truths.missing(numbers)]
    list(run_tasks(_find_truth, unanswered, num_cpus=1))
    markers, answers = ledger.committed(), truths.committed()
    shards = tuple(ShardInfo(path=_shard_path(n), first_id=_span(plan, n)[0], rows=_span(plan, n)[2]) for n in numbers)
    truth = Hits.merge([_partial(answers[n]) for n in numbers], k)
    return shards, tuple(file for marker in markers.values() for file in marker.files), truth


def assemble_bm25(
    store: Store, builds: Store, config: Bm25Config, index: str, rows: int, fields: Sequence[str]
) -> tuple[Bm25Info | None, tuple[FileRecord, ...]]:
    """The BM25 index over `caption` and `captions`: embedded files of the version, or an Elasticsearch index."""
    if config.backend == "none":
        return None, ()
    ledger = Ledger(builds, "bm25")
    if config.backend == "embedded":
        if ledger.missing([0]):
            say(f"bm25: {rows:,} documents into the embedded index")
            list(run_tasks(_build_embedded, [(store, ledger, tuple(fields))], num_cpus=1))
        marker = ledger.committed()[0]
        return Bm25Info(**marker.report), marker.files
    loader = ElasticsearchLoader(config, index)
    loader.create(rows)
    starts = range(0, rows, _DOCUMENTS_PER_TASK)
    missing = ledger.missing(range(len(starts)))
    done = rows - sum(min(_DOCUMENTS_PER_TASK, rows - starts[n]) for n in missing)
    with Progress("bm25", rows, "documents", done=done) as progress:
        arguments = [
            (store, ledger, config, index, n, starts[n], min(starts[n] + _DOCUMENTS_PER_TASK, rows), tuple(fields))
            for n in missing
        ]
        for position, _ in run_tasks(_load_elasticsearch, arguments, num_cpus=1):
            progress.advance(arguments[position][6] - arguments[position][5])
    return loader.finish(rows), ()


def documents(dataset: lance.LanceDataset, first: int, stop: int, fields: Sequence[str]) -> Iterator[Bm25Document]:
    """Rows as BM25 documents: the caption and all further captions, once each."""
    columns = ["key", "caption", "captions", "group", "licence", *fields]
    scanner = dataset.scanner(
        columns=columns, offset=first, limit=stop - first, batch_size=_SCAN_DOCUMENTS, scan_in_order=True
    )
    row_id = first
    for batch in scanner.to_batches():
        for row in batch.to_pylist():
            yield Bm25Document(
                id=row_id,
                text=document_text(row["caption"], row["captions"]),
                key=row["key"],
                group=row["group"],
                licence=row["licence"],
                fields={name: row[name] for name in fields},
            )
            row_id += 1


def document_text(caption: str, captions: Sequence[str]) -> str:
    """What BM25 indexes of a row."""
    return " ".join(dict.fromkeys(text for text in (caption, *captions) if text))


def _check_keys(dataset: lance.LanceDataset) -> None:
    seen: set[str] = set()
    for batch in dataset.scanner(columns=["key"], scan_in_order=True).to_batches():
        for key in batch.column("key").to_pylist():
            if key in seen:
                raise SourceError(
                    f"key '{key}' occurs twice: give the items different keys, or leave one out with exclude.keys"
                )
            seen.add(key)


def _train(store: Store, ledger: Ledger, plan: VectorPlan, sample: NDArray[np.int64], device: Device) -> None:
    sample_ND = normalise(take_embeddings(open_rows(store), sample))
    with _scratch(store, TRAINED_INDEX) as (target, files):
        train_index(plan, sample_ND, target, device=device)
        ledger.commit(Marker(0, files(), {}))


def _build_shard(
    store: Store,
    ledger: Ledger,
    truths: Ledger,
    plan: VectorPlan,
    number: int,
    queries_QD: NDArray[np.float32],
    k: int,
    device: Device,
) -> None:
    first, stop, _ = _span(plan, number)
    exact = _ExactNeighbors(queries_QD, k, first)
    with tempfile.TemporaryDirectory() as folder:
        trained = store.local_path(TRAINED_INDEX)
        if trained is None:
            trained = Path(folder, "trained")
            store.download(TRAINED_INDEX, trained)
        with _scratch(store, _shard_path(number)) as (target, files):
            batches = (exact.watch(normalise(piece)) for piece in scan_embeddings(open_rows(store), first, stop))
            build_shard(plan, trained, batches, target, device=device)
            truths.commit(exact.marker(number))
            ledger.commit(Marker(number + 1, files(), {}))


def _find_truth(
    store: Store, truths: Ledger, plan: VectorPlan, number: int, queries_QD: NDArray[np.float32], k: int
) -> None:
    """The exact neighbours in a shard that stands already."""
    first, stop, _ = _span(plan, number)
    exact = _ExactNeighbors(queries_QD, k, first)
    for piece in scan_embeddings(open_rows(store), first, stop):
        exact.watch(normalise(piece))
    truths.commit(exact.marker(number))


class _ExactNeighbors:
    """Keeps the `k` best rows of each query while vectors stream by; which ones of equal rows is arbitrary."""

    def __init__(self, queries_QD: NDArray[np.float32], k: int, first: int) -> None:
        self._queries_QD, self._k, self._next = queries_QD, k, first
        shape = (len(queries_QD), k)
        self.hits = Hits(np.full(shape, PAD_ID, np.int64), np.full(shape, -np.inf, np.float32))

    def watch(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Looks at the next rows, and gives them back."""
        scores_QN = self._queries_QD @ vectors_ND.T
        if scores_QN.shape[1] > self._k:
            best = np.argpartition(scores_QN, -self._k, axis=1)[:, -self._k :]
        else:
            best = np.broadcast_to(np.arange(scores_QN.shape[1]), scores_QN.shape)
        found = top_k(best.astype(np.int64) + self._next, np.take_along_axis(scores_QN, best, axis=1), self._k)
        self.hits = Hits.merge([self.hits, found], self._k)
        self._next += len(vectors_ND)
        return vectors_ND

    def marker(self, number: int) -> Marker:
        """The neighbours found, of shard `number`."""
        return Marker(number, (), {"ids": self.hits.ids.tolist(), "scores": self.hits.scores.tolist()})


def _build_embedded(store: Store, ledger: Ledger, fields: Sequence[str]) -> None:
    dataset = open_rows(store)
    with tempfile.TemporaryDirectory() as folder:
        info = build_embedded(documents(dataset, 0, dataset.count_rows(), fields), Path(folder))
        local = LocalStore(Path(folder))
        store.delete_tree("bm25")
        files = []
        for entry in local.files():
            store.upload(Path(folder, entry.path), f"bm25/{entry.path}")
            files.append(describe_file(local, entry.path, f"bm25/{entry.path}"))
    ledger.commit(Marker(0, tuple(files), asdict(info)))


def _load_elasticsearch(
    store: Store,
    ledger: Ledger,
    config: Bm25Config,
    index: str,
    number: int,
    first: int,
    stop: int,
    fields: Sequence[str],
) -> None:
    ElasticsearchLoader(config, index).write(documents(open_rows(store), first, stop, fields))
    ledger.commit(Marker(number, (), {"documents": stop - first}))


class _scratch:  # noqa: N801 - a context manager used like a function
    """A local path to write to; on success the file (or folder) moves to its place in the store.

    Gives the path, and a function that moves it and returns the records of the files.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path

    def __enter__(self) -> tuple[Path, Any]:
        self._folder = tempfile.TemporaryDirectory()
        self._target = Path(self._folder.name, Path(self._path).name)
        return self._target, self._move

    def _move(self) -> tuple[FileRecord, ...]:
        local = LocalStore(Path(self._folder.name))
        records = []
        for entry in local.files():
            path = str(Path(self._path).parent / entry.path)
            self._store.upload(Path(self._folder.name, entry.path), path)
            records.append(describe_file(local, entry.path, path))
        return tuple(records)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _span(plan: VectorPlan, number: int) -> tuple[int, int, int]:
    """First id, stop and row count of a shard."""
    first = number * plan.shard_rows
    stop = min(first + plan.shard_rows, plan.rows)
    return first, stop, stop - first


def _shard_path(number: int) -> str:
    return f"vectors/shard-{number:05d}.faiss"


def _partial(marker: Marker) -> Hits:
    return Hits(np.asarray(marker.report["ids"], np.int64), np.asarray(marker.report["scores"], np.float32))
