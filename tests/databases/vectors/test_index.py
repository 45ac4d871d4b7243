from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from remembrandt.databases.hits import PAD_ID, top_k
from remembrandt.databases.vectors import VectorConfig, VectorIndex, exact_search, plan_vectors, recall_at
from remembrandt.errors import CorruptionError, SearchError

APPROXIMATE = [
    "IVF64,Flat",
    "IVF64,SQfp16",
    "IVF64_HNSW16,SQ8",
    "OPQ16_64,IVF64_HNSW16,PQ16",
    "PCA48,IVF64,SQ8",
]
ALL = ["Flat", "SQ8", "HNSW16,Flat", *APPROXIMATE]


def masked_truth(vectors, queries, allowed, k=20):
    ids = np.flatnonzero(allowed)
    found = exact_search(queries, [vectors[ids]], k)
    return top_k(np.where(found.ids == PAD_ID, PAD_ID, ids[np.maximum(found.ids, 0)]), found.scores, k)


def test_flat_search_is_exact(build, vectors, queries):
    hits = build(vectors, "Flat", 8000).search(queries, 20)

    cosines = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(hits.ids, np.argsort(-cosines.astype(np.float32), axis=1, kind="stable")[:, :20])
    np.testing.assert_allclose(hits.scores, -np.sort(-cosines, axis=1)[:, :20], atol=1e-7)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", *APPROXIMATE])
def test_shards_answer_as_one_index_does(factory, build, vectors, queries):
    whole = build(vectors, factory, 8000).search(queries, 20)
    shards = build(vectors, factory, 1700).search(queries, 20)

    np.testing.assert_array_equal(shards.ids, whole.ids)
    np.testing.assert_array_equal(shards.scores, whole.scores)


def test_actors_that_hold_some_shards_each_answer_together_as_one_index(build, vectors, queries):
    whole = build(vectors, "IVF64,SQfp16", 8000)
    parts = build(vectors, "IVF64,SQfp16", 2000)
    actors = [VectorIndex(parts.plan, parts._trained, [shard], None) for shard in parts._shards]

    merged = whole.search(queries, 20).merge([actor.search(queries, 20) for actor in actors], 20)

    np.testing.assert_array_equal(merged.ids, whole.search(queries, 20).ids)


@pytest.mark.parametrize("factory", ["Flat", "IVF64,SQfp16", "SQ8"])
def test_equal_rows_are_ordered_by_id_even_where_they_do_not_all_fit(factory, build, vectors):
    for shard_rows in (8000, 1700):
        hits = build(vectors, factory, shard_rows).search(vectors[[17]], 20)

        np.testing.assert_array_equal(hits.ids, [[17, *range(4000, 4019)]])


def test_flat_answers_do_not_depend_on_the_batch(build, vectors, queries):
    index = build(vectors, "Flat", 1700)
    together = index.search(queries, 20)
    alone = [index.search(query[None], 20) for query in queries]

    np.testing.assert_array_equal(together.ids, np.concatenate([hits.ids for hits in alone]))
    np.testing.assert_array_equal(together.scores, np.concatenate([hits.scores for hits in alone]))


@pytest.mark.parametrize("factory", ALL)
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
def test_a_mask_lets_only_its_rows_answer_and_finds_the_best_of_them(factory, share, build, vectors, queries):
    allowed = np.random.default_rng(3).random(len(vectors)) < share
    index = build(vectors, factory, 1700, fetches="PQ" in factory)

    hits = index.search(queries, 20, allowed)

    assert allowed[hits.ids].all()
    assert recall_at(hits, masked_truth(vectors, queries, allowed), 20).mean() > 0.9


@pytest.mark.parametrize("factory", ALL)
def test_k_rows_come_back_whenever_k_rows_are_allowed(factory, build, vectors, queries):
    far = (vectors @ queries[0]) < np.quantile(vectors @ queries[0], 0.01)
    few = np.zeros(len(vectors), dtype=bool)
    few[[5, 1800, 7999]] = True
    index = build(vectors, factory, 1700)

    assert (index.search(queries, 20, far).ids != PAD_ID).all()
    hits = index.search(queries, 20, few)
    np.testing.assert_array_equal(np.sort(hits.ids[:, :3], axis=1), np.tile([5, 1800, 7999], (len(queries), 1)))
    assert (hits.ids[:, 3:] == PAD_ID).all()
    assert np.isneginf(hits.scores[:, 3:]).all()


def test_few_allowed_rows_are_fetched_and_compared_exactly(build, vectors, queries):
    allowed = np.zeros(len(vectors), dtype=bool)
    allowed[::100] = True
    index = build(vectors, "OPQ16_64,IVF64_HNSW16,PQ16", 1700, fetches=True)

    np.testing.assert_array_equal(index.search(queries, 20, allowed).ids, masked_truth(vectors, queries, allowed).ids)


def test_a_mask_that_allows_nothing_gives_padding(build, vectors, queries):
    hits = build(vectors, "IVF64,SQfp16", 1700).search(queries, 5, np.zeros(len(vectors), dtype=bool))

    assert (hits.ids == PAD_ID).all()


def test_a_mask_of_all_rows_changes_nothing(build, vectors, queries):
    index = build(vectors, "IVF64,SQfp16", 1700)

    np.testing.assert_array_equal(
        index.search(queries, 20, np.ones(len(vectors), dtype=bool)).ids, index.search(queries, 20).ids
    )


def test_masks_of_their_own_are_taken_where_all_rows_are_compared_and_they_fit(build, vectors):
    assert build(vectors, "Flat", 1700).takes(8_000)
    assert not build(vectors, "Flat", 1700).takes(8_001)
    assert not build(vectors, "IVF64,SQ8", 1700).takes(2)


@pytest.mark.parametrize("shard_rows", [1700, 8000])
def test_each_query_may_have_a_mask_of_its_own(shard_rows, build, vectors, queries):
    index = build(vectors, "Flat", shard_rows)
    draws = np.random.default_rng(3).random((3, len(vectors)))
    one = np.arange(len(vectors)) == 5000
    masks = [None, draws[0] < 0.4, draws[1] < 0.01, np.zeros(len(vectors), bool), one, draws[2] < 2]
    masks[1].flags.writeable = False
    asked = np.concatenate([queries, vectors[[17, 4000, 17, 17, 17, 17]]])  # row 17 has a hundred equals
    which = np.concatenate([np.random.default_rng(4).integers(0, len(masks), len(queries)), np.arange(len(masks))])
    found = index.search_each(asked, 20, masks, which)
    for number, mask in enumerate(masks):
        alone = index.search(asked[which == number], 20, mask)
        np.testing.assert_array_equal(found.ids[which == number], alone.ids)
        np.testing.assert_array_equal(found.scores[which == number], alone.scores)


def test_a_writeable_mask_may_change_between_searches(build, vectors, queries):
    index = build(vectors, "Flat", 1700)
    allowed = np.zeros(len(vectors), dtype=bool)
    allowed[:100] = True
    index.search(queries, 5, allowed)
    allowed[:] = ~allowed

    assert (index.search(queries, 5, allowed).ids >= 100).all()


def test_ranking_again_by_fetched_rows_gives_exact_scores_and_more_recall(build, vectors, queries, truth):
    factory = "OPQ16_64,IVF64_HNSW16,PQ16"
    rough = build(vectors, factory, 1700).search(queries, 20)
    ranked = build(vectors, factory, 1700, fetches=True).search(queries, 20)

    assert recall_at(ranked, truth, 20).mean() > recall_at(rough, truth, 20).mean() + 0.1
    exact = np.einsum("bkd,bd->bk", vectors[ranked.ids], queries)
    np.testing.assert_allclose(ranked.scores, exact, atol=1e-6)


def test_more_results_than_rows_are_padded(build, vectors, queries):
    hits = build(vectors[:50], "Flat", 20).search(queries[:3], 60)

    assert (np.sort(hits.ids[:, :50], axis=1) == np.arange(50)).all()
    assert (hits.ids[:, 50:] == PAD_ID).all()


def test_all_rows_come_back_for_k_equal_to_the_row_count(build, vectors, queries):
    hits = build(vectors, "IVF64,SQfp16", 1700).search(queries[:2], len(vectors))

    np.testing.assert_array_equal(np.sort(hits.ids, axis=1), np.tile(np.arange(len(vectors)), (2, 1)))


def test_no_queries_give_no_answers(build, vectors):
    hits = build(vectors, "Flat", 1700).search(np.empty((0, 64), np.float32), 5)

    assert hits.ids.shape == (0, 5)


def test_threads_of_one_process_may_search_at_once(build, vectors, queries):
    index = build(vectors, "IVF64,SQfp16", 1700)
    expected = index.search(queries, 20).ids

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: index.search(queries, 20).ids, range(32)))

    assert all(np.array_equal(ids, expected) for ids in found)


def test_mapped_and_loaded_shards_answer_alike(vectors, queries, index_files, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="IVF64,SQ8", shard_rows=3000))
    trained, shards = index_files(plan, vectors, tmp_path)
    answers = [VectorIndex.open(plan, trained, shards, mmap=mmap).search(queries, 20).ids for mmap in (True, False)]

    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("k", "shape", "mask", "message"),
    [
        (0, (1, 64), None, "at least 1 result"),
        (5, (1, 32), None, "index has 64 dimensions"),
        (5, (64,), None, "index has 64 dimensions"),
        (5, (1, 64), np.ones(10, dtype=bool), "one bool for each of the 8,000 rows"),
        (5, (1, 64), np.ones(8000, dtype=np.uint8), "one bool for each"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(k, shape, mask, message, build, vectors):
    with pytest.raises(SearchError, match=message):
        build(vectors, "Flat", 1700).search(np.ones(shape, np.float32), k, mask)


@pytest.mark.parametrize("factory", ["Flat", "IVF64,SQ8", "HNSW16,Flat"])
def test_damaged_files_are_refused_by_name(factory, vectors, index_files, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory=factory, shard_rows=4000))
    trained, shards = index_files(plan, vectors, tmp_path)
    whole = shards[1].path.read_bytes()

    for damaged in (b"", whole[: len(whole) // 2], b"XXXX" + whole[4:]):
        shards[1].path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=r"shard-00001\.faiss"):
            VectorIndex.open(plan, trained, shards)
    shards[1].path.unlink()
    with pytest.raises(CorruptionError, match=r"shard-00001\.faiss"):
        VectorIndex.open(plan, trained, shards)


def test_a_shard_with_other_rows_than_the_manifest_says_is_refused(vectors, index_files, tmp_path):
    plan = plan_vectors(*vectors.shape, VectorConfig(factory="Flat", shard_rows=5000))
    trained, shards = index_files(plan, vectors, tmp_path)
    shards[0].path.replace(shards[1].path)

    with pytest.raises(CorruptionError, match="holds 5,000 rows, not 3,000"):
        VectorIndex.open(plan, trained, shards[1:])


def test_a_shard_of_another_index_is_refused(vectors, index_files, tmp_path):
    opened = []
    for factory in ("IVF64,SQ8", "IVF32,SQ8"):
        folder = tmp_path / factory
        folder.mkdir()
        plan = plan_vectors(*vectors.shape, VectorConfig(factory=factory))
        opened.append((plan, *index_files(plan, vectors, folder)))

    with pytest.raises(CorruptionError, match="not built with the trained index beside it"):
        VectorIndex.open(opened[0][0], opened[0][1], opened[1][2])
