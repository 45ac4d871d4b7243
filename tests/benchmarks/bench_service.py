"""The service on Ray Serve: what HTTP adds to painting, and search for many clients against `clip back`.

    python -m tests.benchmarks.bench_service [--rows 200000] [--work FOLDER] [--database URI]

`--work` keeps what `bench_search` prepares (its folder and databases serve here too). `--database`: the emoji database
of `make demo`. PEER_PYTHON names the interpreter of an environment with clip-retrieval.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
from numpy.typing import NDArray

import tests.support.ray_cluster  # noqa: F401 - sets Serve up as a cluster does, before it is imported
from remembrandt.allocation import OWN_ARENAS, keep_freed_memory
from remembrandt.generation import DatabaseRef, Generator, PictureRequest
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.serving.accounts import Accounts, Keys, Limits, Tenants
from tests.benchmarks.bench_search import CLIENTS, QUERIES, K, measure_peer, prepare, recall_of, row, timed
from tests.benchmarks.report import table, write_report
from tests.support.processes import free_ports

PAIRS_BY_STEPS = {1: 40, 10: 12}
STARTS = 8
"""Two processes that draw the same differ by some hundredths for as long as they live: of ten steps, by more than HTTP
adds. So there are many starts, with few pairs each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--work", type=Path, help="keeps folder and database here, for another run")
    parser.add_argument("--database", default=".demo/databases/emoji", help="for painting")
    arguments = parser.parse_args()
    emoji = str(Path(arguments.database).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        queries_BD = prepare(work, arguments.rows)
        ray.shutdown()
        shared = {"emoji": emoji, "bench": str(work / "databases" / "high-recall")}
        painted: list[Painted] = []
        for start in range(STARTS):
            with service(Path(scratch) / str(start), shared) as (port, key):
                painted += in_own_process(measure_painting, port, key, emoji)
                if start + 1 == STARTS:
                    searched = measure_search(port, key, work, queries_BD)
        peers = measure_peer(work, queries_BD)
    sections = [
        f"## One picture over HTTP and in process, in turns, the service started {STARTS} times\n\n"
        + table(rows_of_painted(painted)),
        f"## Search of {arguments.rows:,} rows over HTTP, {K} results with captions\n\n" + table([*searched, *peers]),
        "One query is an embedding, sent as clip-retrieval's client sends it; both sides answer its `/knn-service`. "
        "Ours checks a key for each request, and gives each row a signed link to its picture.",
    ]
    path = write_report(
        "service",
        "The service over HTTP",
        "make bench ARGS=service",
        ("ray", "fastapi", "torch", "faiss-cpu"),
        sections,
    )
    print(path.read_text())


@contextmanager
def service(folder: Path, shared: dict[str, str]) -> Iterator[tuple[int, str]]:
    """A running service, set up as for one machine, and a key for it."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    args = {
        "accounts": f"sqlite:///{folder}/accounts.db",
        "storage": str(folder / "storage"),
        "shared": shared,
        "models": {"rdm-small": {"kind": "rdm", "model": "rdm-small", "threads": 2, "replicas": None}},
        "retrieval": None,
        "ingress": {"num_cpus": 0.1, "max_ongoing": 256},
        "telemetry": {"log_format": "text"},
    }
    os.environ.setdefault("PYTHONPATH", str(Path.cwd()))
    from ray import serve

    from services.app import build

    ray.init(num_cpus=4, object_store_memory=300_000_000, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(args), name="remembrandt", route_prefix="/")
    accounts = Accounts(args["accounts"])  # type: ignore[arg-type]
    tenant = Tenants(accounts).create("bench", Limits(requests_per_minute=0, images_per_day=10**9))
    try:
        yield port, Keys(accounts).create(tenant.id).secret
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(connection: http.client.HTTPConnection, path: str, key: str, body: str) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status == 200, data[:300]
    return json.loads(data)


def in_own_process(measure: "Callable[..., list[Painted]]", *arguments: Any) -> "list[Painted]":
    """Measures in a process that starts as a sampler's replica does."""
    with patch.dict(os.environ, OWN_ARENAS), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


@dataclass(frozen=True)
class Painted:
    """Milliseconds of the same pictures, one after the other, here and over HTTP."""

    steps: int
    here: list[float]
    there: list[float]

    @property
    def added(self) -> float:
        """What HTTP adds: the median over pairs."""
        return statistics.median(b - a for a, b in zip(self.here, self.there, strict=True))


def rows_of_painted(starts: Sequence[Painted]) -> list[dict[str, Any]]:
    """A row for each number of steps: all pairs of all starts, and what was added in each start."""
    rows = []
    for steps in PAIRS_BY_STEPS:
        own = [start for start in starts if start.steps == steps]
        whole = Painted(steps, [ms for one in own for ms in one.here], [ms for one in own for ms in one.there])
        rows.append(
            {
                "steps": steps,
                "pairs": len(whole.here),
                "in process, p50 ms": f"{statistics.median(whole.here):.1f}",
                "over HTTP, p50 ms": f"{statistics.median(whole.there):.1f}",
                "added, median of pairs, ms": f"**{whole.added:.1f}**",
                "by start": ", ".join(f"{one.added:.1f}" for one in own),
            }
        )
    return rows


def measure_painting(port: int, key: str, uri: str) -> list[Painted]:
    """p50 of encode + search + sample in this process, and of the same request over HTTP, turn by turn."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(2)
    generator = Generator(RdmSampler.load("rdm-small"), "rdm-small")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    return [measure_pairs(generator, connection, key, uri, *own) for own in PAIRS_BY_STEPS.items()]


def measure_pairs(
    generator: Generator, connection: http.client.HTTPConnection, key: str, uri: str, steps: int, pairs: int
) -> Painted:
    from remembrandt.diffusion.samplers import SamplerConfig

    sampler = SamplerConfig(solver="dpm_solver++", num_inference_steps=steps)
    here, there = [], []
    for number in range(pairs + 3):
        text = f"a red apple number {number}"
        request = PictureRequest(text=text, database=DatabaseRef(uri=uri), sampler=sampler, seed=number)
        body = json.dumps({"prompt": text, "database": "emoji", "steps": steps, "seed": number})
        start = time.perf_counter()
        generator.generate([request])
        here.append((time.perf_counter() - start) * 1000)
        start = time.perf_counter()
        ask(connection, "/v1/images/generations", key, body)
        there.append((time.perf_counter() - start) * 1000)
    return Painted(steps, here[3:], there[3:])


def measure_search(port: int, key: str, work: Path, queries_BD: NDArray[np.float32]) -> list[dict[str, Any]]:
    """One client, and many at once, each with a connection of its own."""
    import threading

    bodies = [
        json.dumps({"embedding_input": q.tolist(), "modality": "image", "num_images": K, "indice_name": "bench"})
        for q in queries_BD
    ]
    own = threading.local()

    def search(query: int) -> list[int]:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        return [found["id"] for found in ask(own.connection, "/knn-service", key, bodies[query])]

    found = np.array([search(i) for i in range(QUERIES)])
    recall = recall_of(found, work, queries_BD)
    one = timed(search, range(400), threads=1)
    start = time.perf_counter()
    many = timed(search, range(QUERIES), threads=CLIENTS)
    rate = QUERIES / (time.perf_counter() - start)
    return [
        row("ours, 1 client, captions", recall, one, 1000 / statistics.median(one)),
        row(f"ours, {CLIENTS} clients, captions", recall, many, rate),
    ]


if __name__ == "__main__":
    main()
