"""The rows of highest inner product, whatever the tiles they are computed in."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from remembrandt.databases.vectors import exact
from remembrandt.databases.vectors.shards import FlatShard, Probe, Selection, ShardFile


def normals(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(1, 400), st.integers(1, 12), st.data())
def test_the_nearest_rows_are_found_best_first(queries: int, rows: int, dim: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, rows))
    tile_queries, tile_rows = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 450))
    queries_BD, vectors_ND = normals(queries, dim, 1), normals(rows, dim, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_TILE_QUERIES", tile_queries)
        patch.setattr(exact, "_TILE_ROWS", tile_rows)
        scores, positions = exact.nearest(queries_BD, vectors_ND, m)
    everything = queries_BD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    assert positions.shape == scores.shape == (queries, m)
    np.testing.assert_allclose(scores, -np.sort(-everything, axis=1)[:, :m], atol=1e-6)
    np.testing.assert_allclose(scores, np.take_along_axis(everything, positions, axis=1), atol=1e-6)
    assert all(len(set(row)) == m for row in positions.tolist())


@pytest.fixture
def shard() -> FlatShard:
    index = faiss.IndexFlatIP(16)
    index.add(normals(500, 16, 3))
    return FlatShard(ShardFile("nowhere", 0, 500), index, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [FlatShard.COPIED_BYTES, 7_000], ids=["all", "one of them"])
def test_rows_that_are_selected_again_are_copied_while_there_is_room(
    shard: FlatShard, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlatShard, "COPIED_BYTES", room)
    masks = [np.random.default_rng(seed).random(500) < 0.2 for seed in range(3)]
    selections = [Selection.of(mask, int(mask.sum()), is_kept=number < 2) for number, mask in enumerate(masks)]
    probe = Probe(normals(7, 16, 4), None, None, None)  # type: ignore[arg-type]
    scores = probe.queries_BD @ normals(500, 16, 3).T
    for _ in range(2):
        for mask, selection in zip(masks, selections, strict=True):
            found, positions = shard.search(probe, 5, selection)
            wanted = -np.sort(-np.where(mask, scores, -np.inf), axis=1)[:, :5]
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            assert mask[positions].all()
    assert len(shard._copies) == (2 if room > 7_000 else 1)
    del selections, selection
    assert len(shard._copies) == 0, "copies go with their masks"


BLAS = """
import numpy as np
from threadpoolctl import ThreadpoolController
from remembrandt.databases.vectors.runtime import one_blas_thread, parallel_rows
(blas,) = [own for own in ThreadpoolController().lib_controllers if "numpy" in own.filepath]
before = blas.get_num_threads()
seen = parallel_rows(lambda queries_BD: blas.get_num_threads(), np.ones((64, 4), np.float32))
with one_blas_thread():
    seen.append(blas.get_num_threads())
print(set(seen), blas.get_num_threads() == before)
"""


def test_blas_computes_on_one_thread_while_a_search_is_under_way_and_on_as_many_as_before_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", BLAS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{1} True"
