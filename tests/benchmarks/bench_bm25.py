"""BM25: which embedded engine, how fast Elasticsearch is filled and asked, and whether both backends agree.

    python -m tests.benchmarks.bench_bm25 [--data FOLDER] [--only engines elasticsearch agreement]

FOLDER holds (or receives) the prepared data sets `taxon`, `taxon-names` and `emoji`. PEER_PYTHON names the interpreter
of an environment with tantivy, bm25s and numba for the comparison of engines; without it only ours is measured.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from elasticsearch import Elasticsearch, helpers

from remembrandt.databases.bm25 import (
    Bm25Config,
    Bm25Document,
    Bm25Searcher,
    ElasticsearchLoader,
    build_embedded,
    open_bm25,
)
from remembrandt.databases.bm25.analysis import analyze
from remembrandt.databases.bm25.elastic_loader import index_body
from remembrandt.databases.hits import PAD_ID, Hits
from tests.benchmarks.report import table, write_report
from tests.support.elasticsearch_node import ElasticsearchNode, build_launcher

LEADS, QUERIES, K_BATCH, K_SINGLE, SINGLES = 100_000, 5000, 3, 10, 300
PEER_QUERIES = 1000
CAPTIONS = 1000
PEER = Path(__file__).with_name("peer_bm25.py")
REPORT = Path(__file__).with_name("bm25.md")
PACKAGES = ("numba", "numpy", "elasticsearch")
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".demo/data"))
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    for part in arguments.only:
        with tempfile.TemporaryDirectory() as scratch:
            keep_section(part, PARTS[part](arguments.data, Path(scratch)))
    print(REPORT.read_text())


def keep_section(part: str, section: Sequence[str]) -> None:
    """Puts a part's section into the report, and leaves those of the other parts as they were."""
    found = dict.fromkeys(PARTS, "")
    if REPORT.exists():
        for text in REPORT.read_text().split("\n## ")[1:]:
            found |= {name: f"## {text.strip()}" for name, title in TITLES.items() if text.startswith(title)}
    measured = f"Measured {time.strftime('%Y-%m-%d')}; load of the machine at the end: {os.getloadavg()[0]:.1f}."
    found[part] = "\n\n".join([f"## {TITLES[part]}", measured, *section])
    sections = [text for text in found.values() if text]
    write_report("bm25", "BM25", "python -m tests.benchmarks.bench_bm25", PACKAGES, sections)


# --- embedded engines --------------------------------------------------------------------------------------------


def engines(data: Path, scratch: Path) -> list[str]:
    """Ours against Tantivy and bm25s, at two sizes."""
    leads = list(texts_of(data, "taxon"))[:LEADS]
    sentences = [lead.split(". ")[0] for lead in leads]
    names = list(texts_of(data, "taxon-names"))
    rows: Rows = []
    rows += compare_engines("100,000 leads, asked by first sentences", leads, sentences, scratch / "leads")
    rows += compare_engines("100,000 leads, asked by whole leads", leads, leads, scratch / "whole")
    rows += compare_engines(f"{len(names):,} names, asked by names", names, names, scratch / "names")
    return [table(rows), ENGINES_NOTE]


ENGINES_NOTE = f"""Each line is a process of its own: the index is built in one thread, {QUERIES:,} queries (Tantivy and
bm25s: {PEER_QUERIES:,} of them) ask for the top {K_BATCH} in a batch, {SINGLES} for the top {K_SINGLE} one by one.
`peak MB` is the memory of that process with all texts in it. Ours finds the words of documents and queries itself
within these times; Tantivy and bm25s get them ready. Ours and bm25s make an index anew to append; Tantivy adds a
segment.

Ours is the choice: Tantivy's Python binding wraps its collector so that no document can be skipped (every posting of
every word is scored), bm25s adds up a full array of scores a query, which at 2.6 million rows costs more than the
search. Ours skips, is memory-mapped, filters, gives the same bytes for the same rows, and has Elasticsearch's scores to
the last bit (below)."""


def compare_engines(what: str, texts: Sequence[str], asked: Sequence[str], folder: Path) -> Rows:
    queries = [asked[row] for row in random.Random(1).sample(range(len(asked)), QUERIES)]
    folder.mkdir()
    rows = [{"corpus": what, "engine": "ours", **in_child(measure_ours, texts, queries, folder / "ours")}]
    peer = os.environ.get("PEER_PYTHON")
    if peer:
        for name, lines in (("documents", texts), ("queries", queries[:PEER_QUERIES])):
            (folder / name).write_text("\n".join(" ".join(analyze(line)) for line in lines), encoding="utf-8")
        for engine in ("tantivy", "bm25s"):
            command = [
                peer,
                str(PEER),
                engine,
                str(folder / "documents"),
                str(folder / "queries"),
                str(folder / engine),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"corpus": what, "engine": engine, **json.loads(done.stdout)})
    return rows


def measure_ours(texts: Sequence[str], queries: Sequence[str], folder: Path) -> dict[str, Any]:
    warm_up(folder)
    start = time.perf_counter()
    info = build_embedded(as_documents(texts), folder)
    seconds = time.perf_counter() - start
    figures: dict[str, Any] = {
        "documents/s": round(len(texts) / seconds),
        "append 10%, s": round(seconds, 1),
        "disk, MB": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6),
    }
    searchers = [open_bm25(info, folder, None, Bm25Config(search_threads=threads)) for threads in (1, 2)]
    figures["single p50, ms"] = round(single_p50(searchers[0], queries) * 1e3, 2)
    for threads, searcher in enumerate(searchers, 1):
        start, cpu = time.perf_counter(), time.process_time()
        searcher.search(queries, K_BATCH)
        rate = len(queries) / (time.perf_counter() - start)
        figures[f"queries/s, {threads} thread{'s'[: threads - 1]}"] = round(rate)
        if threads == 1:
            figures["queries a CPU second"] = round(len(queries) / (time.process_time() - cpu))
    figures["peak MB"] = peak_megabytes()
    return figures


def peak_megabytes() -> int:
    """Largest resident memory of this process; `ru_maxrss` would count the parent's before the start, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def warm_up(folder: Path) -> None:
    """Compiles, or loads, the machine code, which a process does once."""
    target = folder.with_name("warm")
    info = build_embedded(as_documents(["red fox"]), target)
    open_bm25(info, target, None).search(["fox"], K_BATCH)


def in_child(function: Any, *arguments: Any) -> Any:
    """Runs in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# --- Elasticsearch ------------------------------------------------------------------------------------------------


def elasticsearch(data: Path, scratch: Path) -> list[str]:
    """Bulk loading against the client's own helper; batches against single queries."""
    leads = list(texts_of(data, "taxon"))[:LEADS]
    sentences = [lead.split(". ")[0] for lead in leads]
    with running_node(scratch) as url:
        bulk = compare_bulk(url, leads)
        config = Bm25Config(url=url, replicas=0, force_merge=True, search_threads=2)
        searcher = loaded(config, "leads", leads)
        search: Rows = []
        for what, asked in (("first sentences", sentences), ("whole leads", leads)):
            queries = [asked[row] for row in random.Random(2).sample(range(len(asked)), QUERIES // 5)]
            search.append(compare_search(what, searcher, queries))
    return [
        f"Loading {LEADS:,} leads into one shard, no refresh, no copies; both alternate, medians of three runs.",
        table(bulk),
        f"Self-join of the {LEADS:,} leads, top {K_BATCH}, {QUERIES // 5:,} queries; batches of 200 in `_msearch`, "
        "two at a time, ties ordered by row.",
        table(search),
    ]


def compare_bulk(url: str, leads: Sequence[str]) -> Rows:
    times: dict[str, list[float]] = {"helpers.parallel_bulk": [], "ours": []}
    for run in range(4):
        for name, load in (("helpers.parallel_bulk", bare_bulk), ("ours", our_bulk)):
            seconds = load(url, f"bulk-{run}", leads)
            if run:  # the first run warms the server up
                times[name].append(seconds)
    rates = {name: len(leads) / statistics.median(seconds) for name, seconds in times.items()}
    bare = rates["helpers.parallel_bulk"]
    return [
        {"loader": name, "documents/s": round(rate), "of the helper": f"{rate / bare:.2f}"}
        for name, rate in rates.items()
    ]


def bare_bulk(url: str, index: str, leads: Sequence[str]) -> float:
    with Elasticsearch(url, request_timeout=120) as client:
        client.options(ignore_status=404).indices.delete(index=index)
        client.indices.create(index=index, **index_body(1))
        start = time.perf_counter()
        actions = (
            {
                "_op_type": "create",
                "_index": index,
                "_id": str(d.id),
                "_source": {
                    "text": d.text,
                    "row": d.id,
                    "key": d.key,
                    "group": d.group,
                    "licence": d.licence,
                    "fields": dict(d.fields),
                },
            }
            for d in as_documents(leads)
        )
        for accepted, _ in helpers.parallel_bulk(client, actions, thread_count=4, chunk_size=2000):
            assert accepted
        seconds = time.perf_counter() - start
        client.indices.delete(index=index)
    return seconds


def our_bulk(url: str, index: str, leads: Sequence[str]) -> float:
    loader = ElasticsearchLoader(Bm25Config(url=url, replicas=0), index)
    loader.delete()
    loader.create(len(leads))
    start = time.perf_counter()
    loader.write(as_documents(leads))
    seconds = time.perf_counter() - start
    loader.delete()
    loader.close()
    return seconds


def compare_search(what: str, searcher: Bm25Searcher, queries: Sequence[str]) -> dict[str, Any]:
    searcher.search(queries, K_BATCH)
    start = time.perf_counter()
    for query in queries[:SINGLES]:
        searcher.search([query], K_BATCH)
    single = SINGLES / (time.perf_counter() - start)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        searcher.search(queries, K_BATCH)
        rates.append(len(queries) / (time.perf_counter() - start))
    batch = statistics.median(rates)
    return {
        "asked by": what,
        "one at a time, queries/s": round(single),
        "p50, ms": round(single_p50(searcher, queries) * 1e3, 1),
        "batched, queries/s": round(batch),
        "ratio": f"{batch / single:.1f}",
    }


# --- agreement ----------------------------------------------------------------------------------------------------


def agreement(data: Path, scratch: Path) -> list[str]:
    """1,000 captions of each data set, asked of both backends."""
    rows: Rows = []
    with running_node(scratch) as url:
        for name, texts in (("emoji", list(texts_of(data, "emoji"))), ("taxon", list(texts_of(data, "taxon"))[:LEADS])):
            folder = scratch / f"agree-{name}"
            embedded = open_bm25(build_embedded(as_documents(texts), folder), folder, None)
            queries = random.Random(3).sample(texts, CAPTIONS)
            ours = embedded.search(queries, 10)
            for shards in (1, 3):
                config = Bm25Config(url=url, replicas=0, shards=shards)
                theirs = loaded(config, f"agree-{name}-{shards}", texts).search(queries, 10)
                rows.append(
                    {
                        "captions": f"{CAPTIONS:,} of {name}",
                        "rows": f"{len(texts):,}",
                        "shards": shards,
                        **agree(ours, theirs),
                    }
                )
    return [table(rows), AGREEMENT_NOTE]


AGREEMENT_NOTE = """Top 10 of every query. Overlap counts a row as common if its score equals the tenth's. `same order`
and `same scores` are the shares of queries whose ten ids, and whose ten scores bit for bit, are the same."""


def agree(ours: Hits, theirs: Hits) -> dict[str, Any]:
    common, worst = [], 0.0
    for ids_a, scores_a, ids_b, scores_b in zip(ours.ids, ours.scores, theirs.ids, theirs.scores, strict=True):
        a = {row: score for row, score in zip(ids_a, scores_a, strict=True) if row != PAD_ID}
        b = {row: score for row, score in zip(ids_b, scores_b, strict=True) if row != PAD_ID}
        last = min(b.values(), default=0.0)
        common.append(sum(row in b or abs(score - last) <= 1e-6 * last for row, score in a.items()) / max(len(b), 1))
        worst = max([worst, *(abs(a[row] - b[row]) / b[row] for row in a.keys() & b.keys())])
    return {
        "same first": f"{np.mean(ours.ids[:, 0] == theirs.ids[:, 0]):.4f}",
        "overlap": f"{np.mean(common):.4f}",
        "same order": f"{np.mean((ours.ids == theirs.ids).all(axis=1)):.4f}",
        "same scores": f"{np.mean((ours.scores == theirs.scores).all(axis=1)):.4f}",
        "largest difference of a score": f"{worst:.1e}",
    }


# --- shared -------------------------------------------------------------------------------------------------------


def texts_of(data: Path, name: str) -> Iterator[str]:
    """What BM25 indexes of each item of a prepared data set; prepares it where it is missing."""
    folder = data / name
    if not (folder / "dataset.json").exists():
        command = [sys.executable, "-m", "remembrandt", "datasets", "prepare", name, "--out", str(folder)]
        subprocess.run(command, check=True)
    for file in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(file, columns=["caption", "captions"]).to_pylist():
            yield joined(row)
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield joined(json.load(content))


def joined(item: dict[str, Any]) -> str:
    return " ".join(dict.fromkeys(text for text in (item["caption"], *item["captions"]) if text))


def as_documents(texts: Sequence[str]) -> Iterator[Bm25Document]:
    """Rows as a build makes them, with a key, a group of three and a licence."""
    for row, text in enumerate(texts):
        yield Bm25Document(row, text, f"{row:08d}", f"group-{row // 3}", "CC-BY-SA-4.0", {"style": f"style-{row % 5}"})


def single_p50(searcher: Bm25Searcher, queries: Sequence[str]) -> float:
    times = []
    for query in queries[:SINGLES]:
        start = time.perf_counter()
        searcher.search([query], K_SINGLE)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def loaded(config: Bm25Config, index: str, texts: Sequence[str]) -> Bm25Searcher:
    loader = ElasticsearchLoader(config, index)
    loader.create(len(texts))
    loader.write(as_documents(texts))
    return open_bm25(loader.finish(len(texts)), None, config.url, config)


class running_node:  # noqa: N801 - a context manager used like a function
    """A development node for the duration of a block; gives its address."""

    def __init__(self, scratch: Path) -> None:
        build_launcher()
        self._node = ElasticsearchNode(Path(tempfile.mkdtemp(dir=scratch)))

    def __enter__(self) -> str:
        self._node.start()
        return self._node.url

    def __exit__(self, *_: object) -> None:
        self._node.kill()


TITLES = {
    "engines": "Embedded engines",
    "elasticsearch": "Elasticsearch",
    "agreement": "Agreement of the embedded index with Elasticsearch",
}
PARTS = {"engines": engines, "elasticsearch": elasticsearch, "agreement": agreement}

if __name__ == "__main__":
    main()
