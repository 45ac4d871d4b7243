"""Retrieval actors on a real Ray cluster answer as one database in this process does, through crashes and all."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter, Hits
from remembrandt.errors import ConfigError, CorruptionError, RemembrandtError, SearchError, ServiceError, VersionError
from remembrandt.retrieval import Conditioning, RetrievalPool, Searcher, strategies
from remembrandt.retrieval.pool import deal_shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FILTERS = [
    None,
    Filter(equals={"style": ("outline", "small")}),
    Filter(exclude_ids=tuple(range(40, 290))),
    Filter(exclude_groups=("red-circle",), exclude_keys=("filled/blue-star",)),
]
Patient = Callable[..., RetrievalPool]


@pytest.fixture(scope="module")
def exact_uri(sharded_database: Callable[..., str]) -> str:
    return sharded_database(factory="Flat", shard_rows=70)


@pytest.fixture(scope="module")
def exact_pool(exact_uri: str) -> Iterator[RetrievalPool]:
    """Five shards on three actors, and one for BM25; the version is looked at before every answer."""
    options = {"num_actors": 3, "num_cpus": 0.1, "version_check_seconds": 0, "timeout_seconds": 240}
    with RetrievalPool.start(exact_uri, **options) as pool:
        yield pool


@pytest.fixture(scope="module")
def exact(exact_uri: str) -> Iterator[Database]:
    with Database.open(exact_uri) as database:
        yield database


@pytest.fixture(scope="module")
def approximate_uri(sharded_database: Callable[..., str]) -> str:
    return sharded_database(factory="IVF8,PQ8", shard_rows=80, rerank=2)


@pytest.fixture
def hasty(exact_pool: RetrievalPool) -> Iterator[Patient]:
    """The same actors, asked with other patience."""
    made = []

    def connect(**changes: Any) -> RetrievalPool:
        cls, (pin, manifest, config, deal, token, owner) = exact_pool.__reduce__()
        made.append(cls(pin, manifest, config.model_copy(update=changes), deal, token, owner))
        return made[-1]

    yield connect
    for pool in made:
        pool.close()


def some_queries(database: Database, batch: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    near = database.embeddings(rng.integers(0, database.num_rows, batch))
    return (near + rng.normal(size=near.shape) * 0.3 * near.std()).astype(np.float32)


def assert_bit_equal(one: Hits, other: Hits) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores.view(np.int32), other.scores.view(np.int32))


def assert_same_search(
    pool: RetrievalPool, database: Database, batch: int = 3, k: int = 5, where: Filter | None = None
) -> None:
    queries = some_queries(database, batch, seed=k)
    assert_bit_equal(pool.search_embeddings(queries, k, where), database.search_embeddings(queries, k, where))


@pytest.mark.parametrize("where", FILTERS)
def test_an_exact_index_on_three_actors_answers_bit_for_bit_as_one_database(
    exact_pool: RetrievalPool, exact: Database, where: Filter | None
) -> None:
    for batch, k in [(1, 1), (32, 20), (5, 320)]:
        assert_same_search(exact_pool, exact, batch, k, where)


def test_an_approximate_index_on_four_actors_answers_bit_for_bit_as_one_database(approximate_uri: str) -> None:
    with RetrievalPool.start(approximate_uri, num_actors=4, num_cpus=0.1) as pool:
        with Database.open(approximate_uri) as database:
            for where in FILTERS:
                for batch, k in [(1, 1), (32, 10), (5, 320)]:
                    assert_same_search(pool, database, batch, k, where)


def test_each_query_may_have_a_filter_of_its_own(exact_pool: RetrievalPool, exact: Database, exact_uri: str) -> None:
    queries_BD, filters = exact.embeddings(range(0, 320, 20)), FILTERS * 4
    alone = [exact.search_embeddings(query[None], 7, own) for query, own in zip(queries_BD, filters, strict=True)]
    with RetrievalPool.start(exact_uri, num_actors=1, num_cpus=0.1) as one_actor:
        for searcher in (exact, exact_pool, one_actor):
            hits = searcher.search_embeddings(queries_BD, 7, filters)
            np.testing.assert_array_equal(hits.ids, np.concatenate([own.ids for own in alone]))
            np.testing.assert_array_equal(hits.scores, np.concatenate([own.scores for own in alone]))
            texts = searcher.search_bm25(["red star"] * 16, 7, filters)
            for row, own in zip(texts.ids, filters, strict=True):
                np.testing.assert_array_equal(row, exact.search_bm25(["red star"], 7, own).ids[0])


def test_bm25_embeddings_and_rows_are_those_of_the_database(exact_pool: RetrievalPool, exact: Database) -> None:
    texts = ["red circle", "a small star", "nothing of the kind"]
    for where in FILTERS:
        assert_bit_equal(exact_pool.search_bm25(texts, 5, where), exact.search_bm25(texts, 5, where))
    ids = [3, 319, 3, 0]
    np.testing.assert_array_equal(exact_pool.embeddings(ids), exact.embeddings(ids))
    assert exact_pool.rows(ids) == exact.rows(ids)
    assert exact_pool.rows([5], ["image"]) == exact.rows([5], ["image"])
    assert (exact_pool.name, exact_pool.version) == ("drawings", exact.version)
    assert (exact_pool.num_rows, exact_pool.dim) == (320, 64)


def test_a_strategy_does_not_notice_the_difference(exact_pool: RetrievalPool, exact: Database) -> None:
    queries = some_queries(exact, 6, seed=1)

    def ask(searcher: Searcher) -> list[Conditioning]:
        return [
            strategies.text_and_neighbors(searcher, queries, 4),
            strategies.class_pool(searcher, queries, range(6), 3, 9),
            strategies.neighbors_bm25(searcher, ["red star"], 4),
        ]

    for answer, pool_answer in zip(ask(exact), ask(exact_pool), strict=True):
        np.testing.assert_array_equal(answer.ids_BK, pool_answer.ids_BK)
        np.testing.assert_array_equal(answer.embeddings_BKD, pool_answer.embeddings_BKD)
    for where in (None, Filter(exclude_ids=(3, 8))):
        np.testing.assert_array_equal(exact_pool.select(where), exact.select(where))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda s: s.search_embeddings(np.ones((1, 64), np.float32), 321),
        lambda s: s.search_embeddings(np.ones((1, 5), np.float32), 3),
        lambda s: s.search_embeddings(np.ones((1, 64), np.float32), 3, Filter(equals={"stile": ("x",)})),
        lambda s: s.search_bm25(["red"], 0),
        lambda s: s.rows([320]),
        lambda s: s.rows([0], ["imge"]),
        lambda s: s.select(Filter(equals={"stile": ("x",)})),
        lambda s: s.embeddings([-1]),
        lambda s: s.proposal(),
    ],
)
def test_mistakes_are_told_in_the_same_words(
    exact_pool: RetrievalPool, exact: Database, mistake: Callable[[Any], Any]
) -> None:
    with pytest.raises(SearchError) as told:
        mistake(exact)
    with pytest.raises(SearchError) as told_by_pool:
        mistake(exact_pool)
    assert str(told_by_pool.value) == str(told.value)
    assert type(told_by_pool.value) is SearchError


def test_killed_actors_lose_no_request_and_reorder_none(exact_pool: RetrievalPool, exact: Database) -> None:
    pids = list(exact_pool.actors().values())
    kills = {20: pids[0], 21: pids[-1], 90: pids[1], 150: pids[2]}
    futures = []
    for number in range(200):
        if number in kills:
            os.kill(kills[number], signal.SIGKILL)
        query = exact.embeddings([number])
        futures.append(
            exact_pool.submit_search_bm25([f"red {number}"], 3)
            if number % 10 == 1
            else exact_pool.submit_search_embeddings(query, 5)
        )
    for number, future in enumerate(futures):
        query = exact.embeddings([number])
        expected = exact.search_bm25([f"red {number}"], 3) if number % 10 == 1 else exact.search_embeddings(query, 5)
        assert_bit_equal(future.result(), expected)
    assert not set(exact_pool.actors().values()) & set(pids)


def test_an_actor_that_ray_gave_up_is_replaced(exact_pool: RetrievalPool, exact: Database) -> None:
    before = exact_pool.actors()
    ray.kill(ray.get_actor(next(iter(before))))
    assert_same_search(exact_pool, exact)
    after = exact_pool.actors()
    assert [name for name in before if before[name] != after[name]] == [next(iter(before))]


def test_a_pickled_pool_asks_the_same_actors_from_another_process(exact_pool: RetrievalPool, exact: Database) -> None:
    @ray.remote(num_cpus=0.1)
    def search(pickled: bytes, queries: NDArray[np.float32]) -> tuple[Hits, dict[str, int]]:
        with pickle.loads(pickled) as pool:
            return pool.search_embeddings(queries, 7), pool.actors()

    queries = some_queries(exact, 4, seed=2)
    hits, actors = ray.get(search.remote(pickle.dumps(exact_pool), queries))
    assert_bit_equal(hits, exact.search_embeddings(queries, 7))
    assert actors == exact_pool.actors()
    assert_same_search(exact_pool, exact)


def test_a_request_without_an_answer_ends_at_its_deadline(
    exact_pool: RetrievalPool, exact: Database, hasty: Patient
) -> None:
    stopped, pool = list(exact_pool.actors().values())[1], hasty(timeout_seconds=1.5)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(ServiceError) as error:
            pool.search_embeddings(np.ones((1, 64), np.float32), 3)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert "gave no answer within 1.5 s" in str(error.value)
    assert "\n" not in str(error.value)
    assert_same_search(exact_pool, exact)


def test_more_requests_than_may_wait_are_refused_at_once(exact_pool: RetrievalPool, hasty: Patient) -> None:
    stopped, pool = list(exact_pool.actors().values())[-1], hasty(max_in_flight=1, max_queued=2)
    os.kill(stopped, signal.SIGSTOP)
    try:
        waiting = [pool.submit_search_bm25(["red"], 1) for _ in range(3)]
        with pytest.raises(ServiceError, match="has 3 open requests"):
            pool.submit_search_bm25(["red"], 1)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert len({future.result().ids[0, 0] for future in waiting}) == 1
    assert pool.search_bm25(["red"], 1).ids[0, 0] == waiting[0].result().ids[0, 0]


def test_a_pool_stays_with_its_version_whatever_is_published(
    exact_pool: RetrievalPool, exact: Database, exact_uri: str
) -> None:
    catalog = Catalog.open(exact_uri)
    (other,) = set(catalog.versions()) - {exact.version}
    catalog.publish(other)
    try:
        assert exact_pool.version == exact.version
        assert_same_search(exact_pool, exact)
    finally:
        catalog.publish(exact.version)


def test_a_pool_refuses_when_its_version_disappears(exact_pool: RetrievalPool, exact: Database, exact_uri: str) -> None:
    pid = next(iter(exact_pool.actors().values()))
    manifest = Path(exact_uri, "versions", exact.version, "manifest.json")
    hidden = manifest.rename(manifest.with_suffix(".hidden"))
    try:
        with pytest.raises(VersionError, match=f"'{exact.version}' of .* has disappeared"):
            exact_pool.search_embeddings(np.ones((1, 64), np.float32), 1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(VersionError, match=r"does not exist or was never finished|has disappeared"):
            exact_pool.search_embeddings(np.ones((1, 64), np.float32), 1)
    finally:
        hidden.rename(manifest)
    assert_same_search(exact_pool, exact)


def test_a_damaged_file_is_named_before_anything_is_searched(exact_uri: str, tmp_path: Path) -> None:
    copy = tmp_path / "drawings"
    shutil.copytree(exact_uri, copy)
    version = Catalog.open(str(copy)).current()
    shard = copy / "versions" / version / "vectors" / "shard-00002.faiss"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"shard-00002\.faiss is damaged") as error:
        RetrievalPool.start(str(copy), num_actors=2, num_cpus=0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_cpus": 1000, "start_timeout_seconds": 2},
            ServiceError,
            "lower num_actors, replicas or num_cpus",
        ),
        ({"num_actor": 2}, ConfigError, "did you mean 'num_actors'"),
        ({"version": "absent"}, VersionError, "'absent'"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_one_line(
    exact_uri: str, options: dict[str, Any], error: type[RemembrandtError], message: str
) -> None:
    with pytest.raises(error) as told:
        RetrievalPool.start(exact_uri, **options)
    assert message in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(("shards", "groups", "sizes"), [(5, 3, [2, 2, 1]), (4, 4, [1] * 4), (1, 1, [1]), (0, 1, [])])
def test_neighbouring_shards_go_to_the_same_group_as_evenly_as_possible(
    shards: int, groups: int, sizes: list[int]
) -> None:
    dealt = deal_shards(shards, groups)
    assert [len(part) for part in dealt] == sizes
    assert [n for part in dealt for n in part] == list(range(shards))
