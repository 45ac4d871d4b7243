"""Every strategy against a searcher that sorts all rows; shapes, ids, raw embeddings, seeds and batches."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Filter
from remembrandt.errors import SearchError
from remembrandt.retrieval import Conditioning, strategies

DIM = 6


def random_rows(seed: int, count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, DIM)) * rng.uniform(0.5, 20, size=(count, 1))).astype(np.float32)


def cosine_order(query: NDArray[np.float32], rows: NDArray[np.float32], excluded: set[int]) -> list[int]:
    wide, rows = query.astype(np.float64), rows.astype(np.float64)
    scores = [round(float(row @ wide / np.linalg.norm(row) / np.linalg.norm(wide)) * 1024) for row in rows]
    return [n for _, n in sorted((-score, n) for n, score in enumerate(scores) if n not in excluded)]


def assert_same(left: Conditioning, right: Conditioning) -> None:
    for name in ("embeddings_BKD", "ids_BK", "scores_BK", "mask_BK"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


sizes = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5))


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_image_gives_the_k_nearest_rows_with_their_raw_embeddings(
    exact_searcher: Any, size: tuple[int, int, int], data: st.DataObject
) -> None:
    seed, count, batch = size
    rows, queries = random_rows(seed, count), random_rows(seed + 1, batch)
    k = data.draw(st.integers(1, count))
    excluded = data.draw(st.sets(st.integers(0, count - 1)))
    where = Filter(exclude_ids=tuple(excluded)) if excluded else None
    found = strategies.image(exact_searcher(rows), queries, k, where)
    for b in range(batch):
        expected = cosine_order(queries[b], rows, excluded)[:k]
        assert found.ids_BK[b].tolist() == expected + [PAD_ID] * (k - len(expected))
        assert found.mask_BK[b].tolist() == [True] * len(expected) + [False] * (k - len(expected))
        np.testing.assert_array_equal(found.embeddings_BKD[b, : len(expected)], rows[expected])
        assert not found.embeddings_BKD[b, len(expected) :].any()
        assert np.isnan(found.scores_BK[b, len(expected) :]).all()


def test_text_is_the_embedding_itself_and_no_row() -> None:
    queries = random_rows(0, 3)
    found = strategies.text(queries)
    assert found.embeddings_BKD.shape == (3, 1, DIM) and found.mask_BK.all()
    np.testing.assert_array_equal(found.embeddings_BKD[:, 0], queries)
    assert (found.ids_BK == PAD_ID).all() and np.isnan(found.scores_BK).all()


@given(sizes, st.data())
@settings(max_examples=40, deadline=None)
def test_text_and_neighbors_puts_the_text_before_its_k_minus_1_nearest_rows(
    exact_searcher: Any, size: tuple[int, int, int], data: st.DataObject
) -> None:
    seed, count, batch = size
    searcher, queries = exact_searcher(random_rows(seed, count)), random_rows(seed + 1, batch)
    k = data.draw(st.integers(1, count + 1))
    found = strategies.text_and_neighbors(searcher, queries, k)
    assert found.ids_BK.shape == (batch, k)
    np.testing.assert_array_equal(found.embeddings_BKD[:, 0], queries)
    assert (found.ids_BK[:, 0] == PAD_ID).all() and found.mask_BK[:, 0].all()
    if k > 1:
        rest = strategies.neighbors(searcher, queries, k - 1)
        np.testing.assert_array_equal(found.ids_BK[:, 1:], rest.ids_BK)
        np.testing.assert_array_equal(found.embeddings_BKD[:, 1:], rest.embeddings_BKD)


def test_neighbors_by_bm25_leaves_slots_empty_where_fewer_rows_match(exact_searcher: Any) -> None:
    searcher = exact_searcher(random_rows(0, 3), texts=["red fox", "red barn door", "blue sea"])
    found = strategies.neighbors_bm25(searcher, ["red barn", "green"], 3)
    assert found.ids_BK.tolist() == [[1, 0, PAD_ID], [PAD_ID, PAD_ID, PAD_ID]]
    assert found.mask_BK.tolist() == [[True, True, False], [False, False, False]]


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_class_pool_takes_k_adjacent_rows_of_the_pool(
    exact_searcher: Any, size: tuple[int, int, int], data: st.DataObject
) -> None:
    seed, count, batch = size
    rows, queries = random_rows(seed, count), random_rows(seed + 1, batch)
    pool = data.draw(st.integers(1, count))
    k = data.draw(st.integers(1, pool))
    seeds = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=batch, max_size=batch))
    found = strategies.class_pool(exact_searcher(rows), queries, seeds, k, pool)
    for b in range(batch):
        expected = cosine_order(queries[b], rows, set())[:pool]
        start = expected.index(found.ids_BK[b, 0])
        assert found.ids_BK[b].tolist() == expected[start : start + k]


def test_class_pool_starts_everywhere_in_the_pool_equally_often(exact_searcher: Any) -> None:
    rows, query = random_rows(3, 30), random_rows(4, 1)
    found = strategies.class_pool(exact_searcher(rows), np.repeat(query, 3000, axis=0), range(3000), 4, 10)
    starts = Counter(found.ids_BK[:, 0].tolist())
    assert set(starts) == set(cosine_order(query[0], rows, set())[:7])
    assert all(abs(count - 3000 / 7) < 5 * np.sqrt(3000 / 7) for count in starts.values())


def test_class_pool_that_a_filter_leaves_small_is_used_as_far_as_it_goes(exact_searcher: Any) -> None:
    searcher = exact_searcher(random_rows(0, 8))
    where = Filter(exclude_ids=tuple(range(5)))
    found = strategies.class_pool(searcher, random_rows(1, 50), range(50), 2, 6, where)
    assert found.mask_BK.all() and set(found.ids_BK.ravel().tolist()) == {5, 6, 7}
    narrow = strategies.class_pool(searcher, random_rows(1, 2), [1, 2], 4, 6, where)
    assert narrow.mask_BK.sum(axis=1).tolist() == [3, 3]


def test_class_pool_smaller_than_k_is_refused(exact_searcher: Any) -> None:
    with pytest.raises(SearchError, match="set pool_size to 4 or more"):
        strategies.class_pool(exact_searcher(random_rows(0, 9)), random_rows(1, 1), [0], 4, 3)


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_pseudo_query_gives_the_neighbours_of_a_likely_row(
    exact_searcher: Any, size: tuple[int, int, int], data: st.DataObject
) -> None:
    seed, count, batch = size
    rows = random_rows(seed, count)
    counts = np.asarray(
        data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count).filter(any)), dtype=np.float64
    )
    k, top_m = data.draw(st.integers(1, count)), data.draw(st.sampled_from([0.01, 0.1, 0.5, 1.0]))
    found = strategies.pseudo_query(exact_searcher(rows, counts / counts.sum()), range(batch), k, top_m)
    kept = sorted(range(count), key=lambda n: (-counts[n], n))[: int(np.ceil(top_m * count - 1e-9))]
    neighbourhoods = {tuple(cosine_order(rows[n], rows, set())[:k]) for n in kept if counts[n]}
    assert {tuple(ids) for ids in found.ids_BK.tolist()} <= neighbourhoods


def test_pseudo_query_refuses_the_proposal_of_another_database(exact_searcher: Any) -> None:
    from remembrandt.retrieval import ProposalTable

    other = ProposalTable.of(np.full(5, 0.2))
    with pytest.raises(SearchError, match="over 5 rows and the database has 9"):
        strategies.pseudo_query(exact_searcher(random_rows(0, 9)), [0], 2, proposal=other)


@given(sizes, st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_of_a_database_draws_its_own_likely_rows(
    exact_searcher: Any, size: tuple[int, int, int], data: st.DataObject
) -> None:
    seed, count, batch = size
    rows, counts = random_rows(seed, count), np.random.default_rng(seed).integers(1, 9, count).astype(float)
    part = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    top_m = data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    searcher = exact_searcher(rows, counts / counts.sum())
    where = Filter(equals={"row": tuple(map(str, part))})
    found = strategies.pseudo_query(searcher, range(batch), 1, top_m, where)
    kept = sorted(part, key=lambda n: (-counts[n], n))[: int(np.ceil(top_m * len(part) - 1e-9))]
    outside = set(range(count)) - set(part)
    assert set(found.ids_BK[:, 0].tolist()) <= {cosine_order(rows[n], rows, outside)[0] for n in kept}
    # A row that is left out is no neighbour, and the pseudo-queries stay what they were.
    without = Filter(equals=where.equals, exclude_ids=(part[0],))
    others = strategies.pseudo_query(searcher, range(batch), 1, top_m, without).ids_BK
    assert part[0] not in others
    unchanged = found.ids_BK != part[0]
    np.testing.assert_array_equal(others[unchanged], found.ids_BK[unchanged])


def test_a_part_that_nothing_is_near_to_has_no_pseudo_query(exact_searcher: Any) -> None:
    searcher = exact_searcher(random_rows(0, 3), np.array([0.5, 0.5, 0.0]))
    with pytest.raises(SearchError, match="widen the filter"):
        strategies.pseudo_query(searcher, [0], 1, where=Filter(equals={"row": ("2",)}))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**63), min_size=2, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_an_item_gets_the_same_answer_in_every_batch(
    exact_searcher: Any, seed: int, seeds: list[int], data: st.DataObject
) -> None:
    rows, queries = random_rows(seed, 25), random_rows(seed + 1, len(seeds))
    searcher = exact_searcher(rows, np.random.default_rng(seed).dirichlet(np.ones(25)))
    order = data.draw(st.permutations(range(len(seeds))))
    shuffled = [seeds[b] for b in order]
    whole_pool = strategies.class_pool(searcher, queries, seeds, 3, 12)
    whole_pseudo = strategies.pseudo_query(searcher, seeds, 3, 0.5)
    np.testing.assert_array_equal(
        strategies.class_pool(searcher, queries[order], shuffled, 3, 12).ids_BK, whole_pool.ids_BK[order]
    )
    np.testing.assert_array_equal(
        strategies.pseudo_query(searcher, shuffled, 3, 0.5).ids_BK, whole_pseudo.ids_BK[order]
    )
    for b in range(len(seeds)):
        alone = strategies.class_pool(searcher, queries[b : b + 1], seeds[b : b + 1], 3, 12)
        assert alone.ids_BK[0].tolist() == whole_pool.ids_BK[b].tolist()
        assert (
            strategies.pseudo_query(searcher, [seeds[b]], 3, 0.5).ids_BK[0].tolist() == whole_pseudo.ids_BK[b].tolist()
        )


def test_exemplars_are_rows_then_embeddings_as_given(exact_searcher: Any) -> None:
    rows, own = random_rows(0, 9), random_rows(1, 2)[:, None]
    found = strategies.exemplars(exact_searcher(rows), np.array([[3, 1], [8, PAD_ID]]), own)
    assert found.ids_BK.tolist() == [[3, 1, PAD_ID], [8, PAD_ID, PAD_ID]]
    assert found.mask_BK.tolist() == [[True, True, True], [True, False, True]]
    np.testing.assert_array_equal(found.embeddings_BKD[0], [rows[3], rows[1], own[0, 0]])
    np.testing.assert_array_equal(found.embeddings_BKD[1, 2], own[1, 0])
    assert np.isnan(found.scores_BK).all()


def test_exemplars_that_do_not_fit_are_refused(exact_searcher: Any) -> None:
    searcher = exact_searcher(random_rows(0, 9))
    with pytest.raises(SearchError, match="give at least one"):
        strategies.exemplars(searcher)
    with pytest.raises(SearchError, match="do not fit a database of 6 dimensions"):
        strategies.exemplars(searcher, embeddings_BKD=np.zeros((1, 2, 5), np.float32))
    with pytest.raises(SearchError, match="no such row"):
        strategies.exemplars(searcher, np.array([[9]]))


def test_exact_searcher_is_a_searcher_that_breaks_ties_by_row_id(exact_searcher: Any) -> None:
    rows = np.ones((4, DIM), np.float32)
    assert strategies.image(exact_searcher(rows), rows[:1], 3).ids_BK.tolist() == [[0, 1, 2]]
    assert_same(strategies.image(exact_searcher(rows), rows, 2), strategies.neighbors(exact_searcher(rows), rows, 2))
