"""Vector indexes: build time, recall, latency, memory against plan, shards against one index; autofaiss beside them.

200k and 1M × 512: 2,000 random unit centres, noise of 0.7 with a spectrum that decays as (i + 1)^-0.6.

    python -m tests.benchmarks.bench_vectors [--rows 200000 1000000] [--folder FOLDER] [--real embeddings.npy]

PEER_PYTHON names the interpreter of an environment with autofaiss (`pip install autofaiss==2.18.0 faiss-cpu==1.15.1
'setuptools<70'`; clip-retrieval's has it too). `--real` adds rows of a real encoder to the synthetic ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from remembrandt.databases.hits import Hits
from remembrandt.databases.planning import Workload, measure_rates, plan_capacity
from remembrandt.databases.vectors import (
    RecallReport,
    ShardFile,
    VectorConfig,
    VectorIndex,
    VectorPlan,
    build_shard,
    exact_search,
    plan_vectors,
    recall_at,
    train_index,
    tune,
)
from remembrandt.databases.vectors.runtime import num_threads
from remembrandt.encoders.base import normalise
from remembrandt.progress import format_bytes, format_seconds, say
from tests.benchmarks.report import median_seconds, table, write_report

DIM, CLUSTERS, K, QUERIES = 512, 2000, 20, 1000
BLOCK = 50_000
PEER_SECONDS = 900
ROOT = Path(__file__).parents[2]
PEER = Path(__file__).with_name("peer_autofaiss.py")
COMMAND = "make bench"


@dataclass(frozen=True)
class Data:
    """Vectors (N, D) memory-mapped from `folder`, queries (B, D) that are not among them, and their true neighbours."""

    folder: Path
    vectors_ND: NDArray[np.float32]
    queries_BD: NDArray[np.float32]
    truth: Hits


@dataclass(frozen=True)
class Built:
    """An index on disk with the time it took."""

    plan: VectorPlan
    trained: Path
    shards: list[ShardFile]
    train_seconds: float
    add_seconds: float
    report: RecallReport

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in [self.trained, *(shard.path for shard in self.shards)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="keeps the vectors for the next run")
    parser.add_argument("--real", type=Path, help=".npy of real embeddings (N, 512) that are put among the rows")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        built, queries, mode = arguments.memory
        print(resident_growth(Path(built), Path(queries), mode == "mapped"))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        sections = [section(rows, folder, arguments.real) for rows in arguments.rows]
    path = write_report(
        "vectors", "Vector indexes", COMMAND, ["faiss-cpu", "faiss-gpu", "scann", "numpy", "remembrandt"], sections
    )
    say(f"written: {path}")


def section(rows: int, folder: Path, real: Path | None) -> str:
    """Everything that is measured at one row count."""
    data = make_data(rows, folder / str(rows), real)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = build(VectorConfig(), data, Path(scratch, "auto"))
        index = open_index(built, data)
        lines = [figures(f"ours, {built.plan.factory}", built, index, data)]
        if rows <= 200_000:
            lines += other_factories(data, Path(scratch))
        peer = autofaiss(data, Path(scratch), "1GB" if rows > 500_000 else "500MB")
        lines += [peer] if peer else []
        parts = [f"## {rows:,} × {DIM}", table(lines), masks(index, data), against_plan(built, data, Path(scratch))]
        parts.append(against_one_index(built, index, data, Path(scratch)))
    return "\n\n".join(parts)


def make_data(rows: int, folder: Path, real: Path | None) -> Data:
    """Draws the vectors once and keeps them; `real` replaces the first rows."""
    vectors_path, queries_path = folder / "vectors" / "part.npy", folder / "queries.npy"
    if not vectors_path.exists():
        vectors_path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        draw = _drawer(rng)
        np.save(queries_path, draw(QUERIES))
        made = np.lib.format.open_memmap(vectors_path, "w+", np.float32, (rows, DIM))
        for start in range(0, rows, BLOCK):
            made[start : start + BLOCK] = draw(min(BLOCK, rows - start))
        if real is not None:
            embeddings = normalise(np.load(real))[:rows]
            made[: len(embeddings)] = embeddings
        made.flush()
    vectors_ND, queries_BD = np.load(vectors_path, mmap_mode="r"), np.load(queries_path)
    ids_path, scores_path = folder / "truth.npy", folder / "scores.npy"
    if not scores_path.exists():
        say(f"{rows:,} vectors: exact neighbours of {len(queries_BD):,} queries")
        truth = exact_search(queries_BD, batches(vectors_ND, 0, rows), K)
        np.save(ids_path, truth.ids)
        np.save(scores_path, truth.scores)
    return Data(folder, vectors_ND, queries_BD, Hits(np.load(ids_path), np.load(scores_path)))


def _drawer(rng: np.random.Generator) -> Any:
    centres = normalise(rng.standard_normal((CLUSTERS, DIM), dtype=np.float32))
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    spectrum = (np.arange(DIM) + 1.0) ** -0.6
    basis = (rotation * (spectrum / np.linalg.norm(spectrum))[:, None]).astype(np.float32)

    def draw(count: int) -> NDArray[np.float32]:
        noise = rng.standard_normal((count, DIM), dtype=np.float32) @ basis
        return normalise(centres[rng.integers(0, CLUSTERS, count)] + np.float32(0.7) * noise)

    return draw


def batches(vectors_ND: NDArray[np.float32], first: int, stop: int) -> Iterator[NDArray[np.float32]]:
    return (np.asarray(vectors_ND[start : min(start + BLOCK, stop)]) for start in range(first, stop, BLOCK))


def build(config: VectorConfig, data: Data, folder: Path) -> Built:
    """Trains, builds every shard, and tunes on rows of the database, as a build does."""
    rows = len(data.vectors_ND)
    plan = plan_vectors(rows, DIM, config)
    folder.mkdir()
    say(f"build {plan.factory}, {plan.num_shards} shards")
    chosen = np.sort(np.random.default_rng(1).choice(rows, size=plan.train_rows, replace=False))
    start = time.perf_counter()
    train_index(plan, data.vectors_ND[chosen], folder / "trained.faiss")
    trained = time.perf_counter()
    shards = []
    for number in range(plan.num_shards):
        first, stop = number * plan.shard_rows, min(rows, (number + 1) * plan.shard_rows)
        path = folder / f"shard-{number:05d}.faiss"
        build_shard(plan, folder / "trained.faiss", batches(data.vectors_ND, first, stop), path)
        shards.append(ShardFile(path, first, stop - first))
    added = time.perf_counter()
    index = VectorIndex.open(plan, folder / "trained.faiss", shards, data.vectors_ND.__getitem__)
    half = Hits(data.truth.ids[::2], data.truth.scores[::2])
    tuned, report = tune(index, data.queries_BD[::2], half, 0.95, K)
    return Built(tuned, folder / "trained.faiss", shards, trained - start, added - trained, report)


def open_index(built: Built, data: Data) -> VectorIndex:
    return VectorIndex.open(built.plan, built.trained, built.shards, data.vectors_ND.__getitem__)


def figures(name: str, built: Built, index: VectorIndex, data: Data) -> dict[str, object]:
    """One line of the table: recall on the queries that were not tuned on, latency, throughput."""
    held_out = data.queries_BD[1::2]
    truth = Hits(data.truth.ids[1::2], data.truth.scores[1::2])
    recall = recall_at(index.search(held_out, K), truth, K).mean()
    batch, _ = median_seconds(lambda: index.search(data.queries_BD, K), runs=3)
    p50, p95 = latencies(index, data.queries_BD[:300])
    seconds = built.train_seconds + built.add_seconds
    return {
        "index": name,
        "build": f"{seconds:.1f} s ({built.train_seconds:.1f} + {built.add_seconds:.1f})",
        "size": format_bytes(built.bytes),
        f"recall@{K}": f"{recall:.4f}",
        "single p50 / p95": f"{p50:.2f} / {p95:.2f} ms",
        "batch": f"{len(data.queries_BD) / batch:,.0f} q/s",
    }


def latencies(index: VectorIndex, queries_BD: NDArray[np.float32], allowed: Any = None) -> tuple[float, float]:
    """Median and 95th percentile of single queries in milliseconds."""
    times = []
    for query in queries_BD:
        start = time.perf_counter()
        index.search(query[None], K, allowed)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times)), 1000 * float(np.percentile(times, 95))


def other_factories(data: Data, scratch: Path) -> list[dict[str, object]]:
    """What smaller budgets choose, full precision, and ScaNN."""
    configs = {
        "ours, smaller budget": VectorConfig(memory_budget="120MB"),
        "ours, smallest budget": VectorConfig(memory_budget="30MB"),
        "ours, full precision": VectorConfig(factory="IVF2048,Flat"),
        "ScaNN": VectorConfig(backend="scann"),
    }
    lines = []
    for number, (name, config) in enumerate(configs.items()):
        built = build(config, data, scratch / str(number))
        lines.append(figures(f"{name}, {built.plan.factory}", built, open_index(built, data), data))
    return lines


def autofaiss(data: Data, scratch: Path, memory: str) -> dict[str, object] | None:
    """The peer on the same vectors, or None where its environment is not given."""
    python = os.environ.get("PEER_PYTHON")
    if python is None:
        return None
    say("autofaiss")
    arguments = [data.folder / "vectors", data.folder / "queries.npy", data.folder / "truth.npy", scratch / "autofaiss"]
    command = [python, PEER, *arguments, memory, str(num_threads())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_SECONDS)
    except subprocess.TimeoutExpired:
        return {"index": f"autofaiss, {memory}", "build": f"not finished after {PEER_SECONDS} s"}
    if done.returncode:
        raise SystemExit(f"autofaiss failed: {done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "index": f"autofaiss, {result['factory']} {result['parameters']}",
        "build": f"{result['build_s']:.1f} s",
        "size": format_bytes(result["bytes"]),
        f"recall@{K}": f"{result['recall']:.4f}",
        "single p50 / p95": f"{result['p50_ms']:.2f} ms",
        "batch": f"{result['qps']:,.0f} q/s",
    }


def masks(index: VectorIndex, data: Data) -> str:
    """Recall and latency where only a random share of the rows may answer."""
    lines = []
    for share in (0.5, 0.1, 0.01, 0.001):
        allowed = np.random.default_rng(2).random(len(data.vectors_ND)) < share
        allowed.flags.writeable = False
        ids = np.flatnonzero(allowed)
        queries = data.queries_BD[:200]
        parts = (np.asarray(data.vectors_ND[ids[i : i + BLOCK]]) for i in range(0, len(ids), BLOCK))
        found = exact_search(queries, parts, K)
        truth = Hits(ids[found.ids], found.scores)
        recall = recall_at(index.search(queries, K, allowed), truth, K).mean()
        p50, p95 = latencies(index, queries[:100], allowed)
        lines.append(
            {"rows allowed": f"{len(ids):,}", f"recall@{K}": f"{recall:.4f}", "p50 / p95": f"{p50:.2f} / {p95:.2f} ms"}
        )
    return "Masked searches:\n\n" + table(lines)


def against_plan(built: Built, data: Data, scratch: Path) -> str:
    """Planned and actual memory, disk and time."""
    workload = Workload(rows=len(data.vectors_ND), dim=DIM, bm25=False, cores=num_threads())
    planned = plan_capacity(workload, VectorConfig(), measure_rates(None))
    (scratch / "built.json").write_text(
        json.dumps({"plan": built.plan.to_json(), "trained": str(built.trained), "shards": _plain(built.shards)})
    )
    growth = {}
    for mode in ("mapped", "read"):
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_vectors",
            "--memory",
            scratch / "built.json",
            data.folder / "queries.npy",
            mode,
        ]
        growth[mode] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    seconds = built.train_seconds + built.add_seconds
    lines = [
        _beside("memory, mapped and searched", planned.memory_per_actor, growth["mapped"], format_bytes),
        _beside("memory, read", planned.memory_per_actor, growth["read"], format_bytes),
        _beside("disk", planned.vectors_bytes, built.bytes, format_bytes),
        _beside("build", planned.seconds["vectors"], seconds, format_seconds),
    ]
    return "Planned and actual (memory: growth of the resident size by opening and searching):\n\n" + table(lines)


def resident_growth(built: Path, queries: Path, mmap: bool) -> int:
    """Bytes that opening and searching adds to the resident size. Runs in a process of its own."""
    values, queries_BD = json.loads(built.read_text()), np.load(queries)
    plan = VectorPlan.from_json(values["plan"])
    plan = replace(plan, nprobe=max(plan.nprobe, min(32, plan.nprobe * 8)), rerank=0)
    shards = [ShardFile(Path(path), first, rows) for path, first, rows in values["shards"]]
    exact_search(queries_BD[:1], [queries_BD[:64]], K)  # takes what the libraries take at their first use
    before = psutil.Process().memory_info().rss
    index = VectorIndex.open(plan, Path(values["trained"]), shards, mmap=mmap)
    for start in range(0, len(queries_BD), 50):
        index.search(queries_BD[start : start + 50], K)
    return int(psutil.Process().memory_info().rss - before)


def against_one_index(built: Built, index: VectorIndex, data: Data, scratch: Path) -> str:
    """The same rows in one shard, trained by the same sample, must give the same answers."""
    rows = len(data.vectors_ND)
    whole = replace(built.plan, shard_rows=rows, num_shards=1)
    path = scratch / "whole.faiss"
    build_shard(whole, built.trained, batches(data.vectors_ND, 0, rows), path)
    one = VectorIndex.open(whole, built.trained, [ShardFile(path, 0, rows)], data.vectors_ND.__getitem__)
    a, b = index.search(data.queries_BD, K), one.search(data.queries_BD, K)
    same = int((a.ids == b.ids).all(axis=1).sum())
    return (
        f"{built.plan.num_shards} shards against one: the same {K} ids in the same order for {same:,} of "
        f"{len(a):,} queries."
    )


def _beside(name: str, planned: float, actual: float, show: Any) -> dict[str, object]:
    return {"what": name, "planned": show(planned), "actual": show(actual), "ratio": f"{actual / planned:.2f}"}


def _plain(shards: list[ShardFile]) -> list[tuple[str, int, int]]:
    return [(str(shard.path), shard.first_id, shard.rows) for shard in shards]


if __name__ == "__main__":
    main()
