"""Search of a real database of 200,000 rows with captions and images, against clip-retrieval's `clip back`.

Vectors are synthetic clusters (2,000 centres, noise of decaying spectrum, 512 dimensions), images small JPEG files.
The database is built by the real build from a folder in clip-retrieval's layout; the peer indexes and serves the same
folder.

    python -m tests.benchmarks.bench_search [--rows 200000] [--work FOLDER]

PEER_PYTHON names the interpreter of an environment with clip-retrieval.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.encoders.base import normalise
from tests.benchmarks.bench_embedding import make_checkpoint
from tests.benchmarks.report import table, write_report
from tests.support.processes import free_ports

DIM, K, QUERIES, CLIENTS = 512, 20, 1000, 32
DISTINCT_IMAGES = 1000
FLOORS = {"default": 0.95, "high-recall": 0.998}
PEER = Path(__file__).with_name("peer_clip_back.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--work", type=Path, help="keeps folder and database here, for another run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        queries_BD = prepare(work, arguments.rows)
        rows = [row for name in FLOORS for row in measure_ours(work, name, queries_BD)]
        rows += measure_peer(work, queries_BD)
    path = write_report(
        "search",
        f"Search of {arguments.rows:,} rows",
        "make bench",
        ("faiss-cpu", "pylance", "numpy"),
        [
            table(rows),
            "One query is an embedding; encoding a text is excluded. Ours runs in the caller's process; `high-recall` "
            f"was built with `gate.recall_floor` {FLOORS['high-recall']}.",
        ],
    )
    print(path.read_text())


def prepare(work: Path, rows: int) -> NDArray[np.float32]:
    """The folder in clip-retrieval's layout, our database from it, and held-out queries (B, D)."""
    rng = np.random.default_rng(0)
    centres = normalise(rng.standard_normal((2000, DIM)))
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    spectrum = (np.arange(DIM) + 1.0) ** -0.6
    basis = rotation * (spectrum / np.linalg.norm(spectrum)).astype(np.float32)[:, None]

    def draw(count: int) -> NDArray[np.float32]:
        noise = rng.standard_normal((count, DIM), dtype=np.float32) @ basis
        return normalise(centres[rng.integers(0, len(centres), count)] + 0.7 * noise)

    queries_BD = draw(QUERIES)
    folder = work / "folder"
    if not folder.exists():
        for part in ("img_emb", "metadata", "images"):
            (folder / part).mkdir(parents=True)
        for number in range(DISTINCT_IMAGES):
            noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((128, 128)).save(folder / "images" / f"{number:07d}.jpg", quality=85)
        vectors_ND = np.concatenate([draw(50_000) for _ in range(rows // 50_000)])
        np.save(folder / "img_emb" / "img_emb_0.npy", vectors_ND.astype(np.float16))
        paths = [str(folder / "images" / f"{i:07d}.jpg") for i in range(rows)]
        for number, path in enumerate(paths[DISTINCT_IMAGES:], start=DISTINCT_IMAGES):
            os.link(paths[number % DISTINCT_IMAGES], path)
        captions = [f"caption of item number {i}, one of many" for i in range(rows)]
        keys = [f"{i:09d}" for i in range(rows)]
        columns = {"caption": pa.array(captions), "image_path": pa.array(paths), "key": pa.array(keys)}
        pq.write_table(pa.table(columns), folder / "metadata" / "metadata_0.parquet")
    for name, floor in FLOORS.items():
        uri = work / "databases" / name
        if (uri / "current").exists():
            continue
        values = {
            "uri": str(uri),
            "source": {"kind": "clip_retrieval", "uri": str(folder)},
            "encoder": None,
            "bm25": {"backend": "none"},
            "gate": {"recall_floor": floor},
        }
        build_database(parse_config(BuildConfig, values, "bench"))
    return queries_BD


def measure_ours(work: Path, name: str, queries_BD: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Latency of one query with captions and images, and queries a second in batches with captions."""
    with Database.open(str(work / "databases" / name)) as database:
        recall = recall_of(database.search_embeddings(queries_BD, K).ids, work, queries_BD)

        def single(query: int) -> None:
            hits = database.search_embeddings(queries_BD[query : query + 1], K)
            found = database.rows(hits.ids[0], ["caption", "image"])
            assert all(row.image for row in found)

        def batch(start: int) -> None:
            hits = database.search_embeddings(queries_BD[start : start + CLIENTS], K)
            assert all(row.caption for row in database.rows(hits.ids.reshape(-1), ["caption"]))

        latencies = timed(single, range(QUERIES), threads=1)
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            for first in range(0, QUERIES - CLIENTS, CLIENTS):
                batch(first)
            rates.append((QUERIES - CLIENTS) // CLIENTS * CLIENTS / (time.perf_counter() - start))
    return [
        row(f"ours ({name}), one query, captions and images", recall, latencies, 1000 / statistics.median(latencies)),
        row(f"ours ({name}), batches of {CLIENTS}, captions", recall, [], statistics.median(rates)),
    ]


def measure_peer(work: Path, queries_BD: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The same queries over HTTP to clip back, as its own client sends them; nothing where it is not installed."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        return []
    (port,) = free_ports(1)
    log = (work / "peer.log").open("w")
    checkpoint = make_checkpoint(work / "vitb32.pt")
    command = [python, str(PEER), str(work / "folder"), str(work / "peer"), str(port), str(checkpoint)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    bodies = [
        json.dumps({"embedding_input": q.tolist(), "modality": "image", "num_images": K, "indice_name": "bench"})
        for q in queries_BD
    ]

    def ask(query: int) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/knn-service", bodies[query], {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return [item["id"] for item in answer]

    try:
        deadline = time.monotonic() + 900
        while True:
            try:
                ask(0)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(1)
        found = np.array([(ask(i) + [-1] * K)[:K] for i in range(QUERIES)])
        recall = recall_of(found, work, queries_BD)
        one = timed(ask, range(400), threads=1)
        start = time.perf_counter()
        many = timed(ask, range(QUERIES), threads=CLIENTS)
        rate = QUERIES / (time.perf_counter() - start)
    finally:
        server.kill()
        server.wait()
        log.close()
    return [
        row("clip back, 1 client, captions", recall, one, 1000 / statistics.median(one)),
        row(f"clip back, {CLIENTS} clients, captions", recall, many, rate),
    ]


def timed(work: Callable[[int], object], queries: range, threads: int) -> list[float]:
    """Milliseconds of each call."""
    times: list[float] = []
    left = iter(queries)
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                query = next(left, None)
            if query is None:
                return
            start = time.perf_counter()
            work(query)
            times.append((time.perf_counter() - start) * 1000)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return times


def recall_of(ids_BK: NDArray[np.int64], work: Path, queries_BD: NDArray[np.float32]) -> float:
    """recall@K against exact search over the fp16 vectors."""
    vectors_ND = normalise(np.load(work / "folder" / "img_emb" / "img_emb_0.npy"))
    _, truth_BK = faiss.knn(queries_BD, vectors_ND, K, metric=faiss.METRIC_INNER_PRODUCT)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(ids_BK.tolist(), truth_BK.tolist(), strict=True)]))


def row(what: str, recall: float, latencies: list[float], rate: float) -> dict[str, Any]:
    ordered = sorted(latencies)
    p50 = f"{statistics.median(ordered):.2f}" if ordered else ""
    p95 = f"{ordered[int(len(ordered) * 0.95)]:.2f}" if ordered else ""
    return {"what": what, f"recall@{K}": f"{recall:.3f}", "p50 ms": p50, "p95 ms": p95, "queries/s": f"{rate:,.0f}"}


if __name__ == "__main__":
    main()
