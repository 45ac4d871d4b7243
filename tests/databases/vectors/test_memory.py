import json
import subprocess
import sys

import numpy as np
import pytest

from remembrandt.databases.vectors import VectorConfig, plan_vectors

# Opens and searches in a fresh process, after the libraries have taken what they take at their first use, and with no
# free memory left that the index could go into unseen.
MEASURE = """
import ctypes, json, sys
from pathlib import Path
import faiss, numpy as np, psutil
from remembrandt.databases.vectors import ShardFile, VectorIndex, VectorPlan, exact_search
values, queries = json.loads(Path(sys.argv[1]).read_text()), np.load(sys.argv[2])
shards = [ShardFile(Path(path), first, rows) for path, first, rows in values["shards"]]
exact_search(queries[:1], [queries[:64]], 20)
faiss.knn(queries[:20], queries[:64], 20)
ctypes.CDLL(None).malloc_trim(0)
before = psutil.Process().memory_info().rss
plan = VectorPlan.from_json(values["plan"])
index = VectorIndex.open(plan, Path(values["trained"]), shards, mmap=sys.argv[3] == "map")
for start in range(0, len(queries), 20):
    index.search(queries[start : start + 20], 20)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
@pytest.mark.parametrize("mode", ["map", "read"])
def test_opening_and_searching_takes_the_memory_that_was_planned(mode, make_clustered, index_files, tmp_path):
    vectors, queries = make_clustered(40_000, 512, 200, seed=11), make_clustered(400, 512, 200, seed=12)
    config = VectorConfig(factory="IVF128,SQfp16", shard_rows=10_000, train_rows=3000)
    plan = plan_vectors(*vectors.shape, config)
    trained, shards = index_files(plan, vectors, tmp_path)
    np.save(tmp_path / "queries.npy", queries)
    files = [(str(shard.path), shard.first_id, shard.rows) for shard in shards]
    (tmp_path / "built.json").write_text(json.dumps({"plan": plan.to_json(), "trained": str(trained), "shards": files}))

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "built.json", tmp_path / "queries.npy", mode],
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(done.stdout) == pytest.approx(plan.memory_bytes, rel=0.1)
