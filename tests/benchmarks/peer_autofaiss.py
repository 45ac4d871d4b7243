"""autofaiss on the vectors that `bench_vectors.py` made; run with the interpreter of the peer's environment.

    python peer_autofaiss.py FOLDER_OF_NPY QUERIES TRUTH OUT MEMORY THREADS

Prints one JSON object. autofaiss 2.18.0 passes the keyword `M` to `OPQMatrix`, which faiss 1.15 has dropped; it is
handed on by position.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import faiss
import numpy as np


class _OPQMatrix(faiss.OPQMatrix):
    def __init__(self, d, M=1, d2=-1):
        super().__init__(d, M, d2)


faiss.OPQMatrix = _OPQMatrix

from autofaiss import build_index  # noqa: E402 - after OPQMatrix has been replaced
from autofaiss.indices.index_utils import set_search_hyperparameters  # noqa: E402

folder, queries_path, truth_path, out, memory, threads = sys.argv[1:7]
queries, truth = np.load(queries_path), np.load(truth_path)
Path(out).mkdir(parents=True, exist_ok=True)
start = time.perf_counter()
build_index(
    embeddings=folder,
    index_path=f"{out}/knn.index",
    index_infos_path=f"{out}/infos.json",
    max_index_memory_usage=memory,
    current_memory_available="16GB",
    nb_cores=int(threads),
    metric_type="ip",
    verbose=40,
)
build = time.perf_counter() - start
infos = json.loads(Path(out, "infos.json").read_text())
index = faiss.read_index(f"{out}/knn.index")
set_search_hyperparameters(index, infos["index_param"], False)
faiss.omp_set_num_threads(int(threads))


def timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


found = index.search(queries, 20)[1]
hits = [len(set(a) & set(b)) / 20 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
batch = sorted(timed(lambda: index.search(queries, 20)) for _ in range(3))[1]
faiss.omp_set_num_threads(1)
single = sorted(timed(partial(index.search, query[None], 20)) for query in queries[:300])
result = {
    "build_s": build,
    "factory": infos["index_key"],
    "parameters": infos["index_param"],
    "bytes": Path(out, "knn.index").stat().st_size,
    "recall": float(np.mean(hits)),
    "p50_ms": 1000 * single[150],
    "qps": len(queries) / batch,
}
print(json.dumps(result))
