"""Tantivy and bm25s on the same texts, run by an interpreter that has them: one measurement, as JSON on stdout.

    python peer_bm25.py tantivy|bm25s DOCUMENTS QUERIES FOLDER

DOCUMENTS and QUERIES are text files of ready tokens, one text a line: finding words costs the peers nothing here. The
last tenth of the documents is appended in a second step.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

K_BATCH, K_SINGLE, SINGLES = 3, 10, 300
Search = Callable[[Sequence[list[str]], int, int], None]


def tantivy_engine(documents: list[list[str]], folder: Path) -> tuple[float, float, Search]:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("id", fast=True)
    builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    schema = builder.build()
    folder.mkdir(parents=True)
    index = tantivy.Index(schema, path=str(folder))

    def add(first: int, stop: int) -> float:
        start = time.perf_counter()
        writer = index.writer(heap_size=256_000_000, num_threads=1)
        for row in range(first, stop):
            writer.add_document(tantivy.Document(id=row, text=" ".join(documents[row])))
        writer.commit()
        writer.wait_merging_threads()
        return time.perf_counter() - start

    most = len(documents) * 9 // 10
    build = add(0, most)
    append = add(most, len(documents))
    index.reload()
    searcher = index.searcher()

    def one(tokens: list[str], k: int) -> None:
        terms = [(tantivy.Occur.Should, tantivy.Query.term_query(schema, "text", token, "freq")) for token in tokens]
        hits = searcher.search(tantivy.Query.boolean_query(terms), k, count=False).hits
        searcher.fast_field_values("id", [address for _, address in hits])

    def search(queries: Sequence[list[str]], k: int, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(
                pool.map(
                    lambda part: [one(tokens, k) for tokens in part], [queries[t::threads] for t in range(threads)]
                )
            )

    return build / most * len(documents), append, search


def bm25s_engine(documents: list[list[str]], folder: Path) -> tuple[float, float, Search]:
    import bm25s

    def index(texts: list[list[str]]) -> tuple[Any, float]:
        start = time.perf_counter()
        made = bm25s.BM25(k1=1.2, b=0.75, method="lucene", backend="numba")
        made.index(texts, show_progress=False)
        return made, time.perf_counter() - start

    engine, build = index(documents)
    engine.save(str(folder))

    def search(queries: Sequence[list[str]], k: int, threads: int) -> None:
        engine.retrieve(list(queries), k=k, show_progress=False, n_threads=threads)

    return build, build, search


def main() -> None:
    name, documents_file, queries_file, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    documents = [line.split() for line in Path(documents_file).read_text(encoding="utf-8").split("\n")]
    queries = [line.split() for line in Path(queries_file).read_text(encoding="utf-8").split("\n")]
    engine = {"tantivy": tantivy_engine, "bm25s": bm25s_engine}[name]
    build, append, search = engine(documents, folder)
    figures = {
        "documents/s": round(len(documents) / build),
        "append 10%, s": round(append, 1),
        "disk, MB": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6),
        "peak MB": peak_megabytes(),
    }
    print(json.dumps({**figures, **time_searches(search, queries)}))


def peak_megabytes() -> int:
    """Largest resident memory of this process; `ru_maxrss` would count the parent's before the start, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def time_searches(search: Search, queries: list[list[str]]) -> dict[str, float]:
    search(queries[:8], K_BATCH, 1)
    singles = []
    for query in queries[:SINGLES]:
        start = time.perf_counter()
        search([query], K_SINGLE, 1)
        singles.append(time.perf_counter() - start)
    figures: dict[str, float] = {"single p50, ms": round(statistics.median(singles) * 1e3, 2)}
    for threads in (1, 2):
        start, cpu = time.perf_counter(), time.process_time()
        search(queries, K_BATCH, threads)
        figures[f"queries/s, {threads} thread{'s'[: threads - 1]}"] = round(
            len(queries) / (time.perf_counter() - start)
        )
        if threads == 1:
            figures["queries a CPU second"] = round(len(queries) / (time.process_time() - cpu))
    return figures


if __name__ == "__main__":
    main()
