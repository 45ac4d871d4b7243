"""A search whose looks are made in several processes is, bit for bit, the search of one index over all shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from remembrandt.databases.hits import Hits
from remembrandt.databases.manifest import ShardInfo, VectorsInfo
from remembrandt.databases.vectors import ShardFile, VectorConfig, VectorIndex, build_shard, plan_vectors, train_index
from remembrandt.databases.vectors.exact import Fetch, rescore
from remembrandt.encoders.base import normalise
from remembrandt.retrieval.shards import LookingIndex, LookQuestion, Question, RemoteIndex

ROWS, DIM, SHARD_ROWS = 3000, 32, 450
FACTORIES = {
    "Flat": VectorConfig(factory="Flat", shard_rows=SHARD_ROWS),
    "IVF": VectorConfig(factory="IVF32,Flat", shard_rows=SHARD_ROWS, train_rows=1500),
    "IVF+SQ": VectorConfig(factory="IVF32,SQ8", shard_rows=SHARD_ROWS, train_rows=1500),
    "IVF+PQ, re-ranked": VectorConfig(factory="IVF32,PQ8", shard_rows=SHARD_ROWS, train_rows=1500, rerank=5),
    "OPQ+IVF+PQ, re-ranked": VectorConfig(
        factory="OPQ8_32,IVF32,PQ8", shard_rows=SHARD_ROWS, train_rows=1500, rerank=3
    ),
}


class Parts:
    """One index, and the same shards dealt out to several."""

    def __init__(self, whole: VectorIndex, info: VectorsInfo, parts: Sequence[LookingIndex], fetch: Fetch) -> None:
        self._fetch = fetch
        self.whole, self.parts, self._remote = whole, parts, RemoteIndex(info)
        self.looks = 0

    def search(self, queries_BD: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        available = ROWS if allowed is None else int(allowed.sum())
        search = self._remote.search_remotely(queries_BD, k, available)
        question = next(search)
        while True:
            try:
                question = search.send(self._answer(question, allowed))
            except StopIteration as end:
                hits: Hits = end.value
                return hits

    def _answer(self, question: Question, allowed: NDArray[np.bool_] | None) -> list[Any]:
        if isinstance(question, LookQuestion):
            self.looks += 1
            return [part.look(question.queries_BD, question.m, question.effort, allowed) for part in self.parts]
        portions = np.array_split(question.ids_BM, 3, axis=1)
        return [rescore(question.queries_BD, ids_BM, self._fetch, question.k) for ids_BM in portions]


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    """Clusters, with rows 1,000–1,039 being copies of row 3."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(40, DIM))[rng.integers(0, 40, ROWS)] + 0.4 * rng.normal(size=(ROWS, DIM))
    made[1000:1040] = made[3]
    return normalise(made)


@pytest.fixture(scope="module", params=list(FACTORIES))
def parts(request: pytest.FixtureRequest, rows: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder: Path = tmp_path_factory.mktemp("shards")
    plan = plan_vectors(ROWS, DIM, FACTORIES[request.param])
    train_index(plan, rows[: plan.train_rows], folder / "trained")
    files = []
    for number, first in enumerate(range(0, ROWS, SHARD_ROWS)):
        build_shard(plan, folder / "trained", iter([rows[first : first + SHARD_ROWS]]), folder / str(number))
        files.append(ShardFile(folder / str(number), first, len(rows[first : first + SHARD_ROWS])))
    portions = (files, files[:2], files[2:3], files[3:])
    whole, *some = [VectorIndex.open(plan, folder / "trained", portion, rows.__getitem__) for portion in portions]
    shards = tuple(ShardInfo(path=str(f.path), first_id=f.first_id, rows=f.rows) for f in files)
    info = VectorsInfo(plan=plan.to_json(), shards=shards)
    return Parts(whole, info, [LookingIndex.of(part) for part in some], rows.__getitem__)


def assert_bit_equal(one: Hits, other: Hits) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores.view(np.int32), other.scores.view(np.int32))


@pytest.mark.parametrize("k", [1, 7, 50, 600])
def test_looks_from_several_processes_give_the_answer_of_one_index(
    parts: Parts, rows: NDArray[np.float32], k: int
) -> None:
    queries = normalise(np.random.default_rng(k).normal(size=(25, DIM)) + rows[::120])
    assert_bit_equal(parts.search(queries, k), parts.whole.search(queries, k))


@pytest.mark.parametrize("share", [0.15, 0.5, 0.97])
def test_so_they_do_under_a_mask(parts: Parts, rows: NDArray[np.float32], share: float) -> None:
    rng = np.random.default_rng(int(share * 1000))
    allowed = rng.random(ROWS) < share
    allowed[2000:2500] = False  # a whole shard may be empty
    queries = normalise(rng.normal(size=(10, DIM)) + rows[:10])
    assert_bit_equal(parts.search(queries, 20, allowed), parts.whole.search(queries, 20, allowed))


def test_equal_rows_come_in_order_of_id(parts: Parts, rows: NDArray[np.float32]) -> None:
    found = parts.search(rows[3:4], 30)
    assert_bit_equal(found, parts.whole.search(rows[3:4], 30))


def test_usually_one_look_is_enough(parts: Parts, rows: NDArray[np.float32]) -> None:
    before = parts.looks
    parts.search(rows[:20], 5)
    assert parts.looks - before <= 2


@pytest.mark.parametrize("parts", [name for name in FACTORIES if "re-ranked" in name], indirect=True)
def test_merging_finished_answers_would_not_give_the_answer_of_one_index(parts: Parts) -> None:
    queries = normalise(np.random.default_rng(1).normal(size=(100, DIM)))
    merged = Hits.merge([part.search(queries, 10) for part in parts.parts], 10)
    assert not np.array_equal(merged.ids, parts.whole.search(queries, 10).ids)
