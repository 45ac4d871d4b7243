from dataclasses import asdict, replace

import numpy as np
import pytest

from remembrandt.databases.hits import Hits
from remembrandt.databases.vectors import VectorConfig, VectorIndex, exact_search, plan_vectors, recall_at, tune


def test_the_least_effort_that_reaches_the_floor_is_taken(build, vectors, queries, truth, probing):
    index = build(vectors, "IVF64,SQfp16", 1700)

    plan, report = tune(index, queries, truth, 0.95, 20)

    assert report.lower_bound >= 0.95
    assert report.nprobe == plan.nprobe < 64
    assert report.p50_ms > 0
    less = probing(index, max(1, plan.nprobe - 4)).search(queries, 20)
    assert plan.nprobe <= 4 or recall_at(less, truth, 20).mean() < report.recall


def test_a_higher_floor_costs_more_lists(build, vectors, queries, truth):
    index = build(vectors, "IVF64,SQfp16", 1700)

    probes = [tune(index, queries, truth, floor, 20)[0].nprobe for floor in (0.5, 0.9, 0.99)]

    assert probes == sorted(probes)
    assert probes[0] < probes[-1]


def test_the_reported_recall_is_what_the_tuned_index_has(build, vectors, queries, truth):
    index = build(vectors, "IVF64_HNSW16,SQ8", 1700)
    plan, report = tune(index, queries, truth, 0.9, 20)

    found = index.with_plan(plan).search(queries, 20)

    assert report.recall == pytest.approx(recall_at(found, truth, 20).mean())


def test_more_candidates_are_ranked_again_where_lists_alone_do_not_suffice(build, vectors, queries, truth):
    index = build(vectors, "OPQ8_32,IVF64,PQ8", 8000, fetches=True)
    start = index.with_plan(replace(index.plan, rerank=2))

    plan, report = tune(start, queries, truth, 0.95, 20)

    assert plan.rerank > 2
    assert report.recall >= 0.95


def test_a_floor_out_of_reach_is_reported_as_missed(build, vectors, queries, truth):
    _plan, report = tune(build(vectors, "IVF64,PQ4", 8000), queries, truth, 0.95, 20)

    assert report.recall < 0.95 == report.floor


def test_exact_search_needs_no_tuning(build, vectors, queries, truth):
    _plan, report = tune(build(vectors, "Flat", 1700), queries, truth, 0.95, 20)

    assert (report.recall, report.nprobe) == (1.0, 0)


def test_a_graph_is_tuned_by_its_breadth(build, vectors, queries, truth):
    plan, report = tune(build(vectors, "HNSW16,Flat", 8000), queries, truth, 0.9, 20)

    assert report.ef_search == plan.ef_search > 0
    assert report.recall >= 0.9


def test_a_row_as_good_as_a_true_neighbour_counts(build, vectors):
    queries = vectors[17:18]  # rows 4,000 to 4,099 equal it: which of them are true is arbitrary
    truth = exact_search(queries, [vectors], 20)
    others = Hits(truth.ids.copy(), truth.scores)
    others.ids[0, 10:] = np.arange(4090, 4100)
    assert recall_at(others, truth, 20)[0] == 0.5

    class Finds:
        plan = build(vectors, "Flat", 1700).plan

        def with_plan(self, plan):
            return self

        def search(self, queries_BD, k, allowed=None):
            return others

    assert tune(Finds(), queries, truth, 0.95, 20)[1].recall == 0.5
    assert tune(Finds(), queries, truth, 0.95, 20, vectors.__getitem__)[1].recall == 1.0
    others.ids[0, 10:] = np.arange(100, 110)
    assert tune(Finds(), queries, truth, 0.95, 20, vectors.__getitem__)[1].recall == 0.5


def test_recall_counts_only_neighbours_that_exist():
    truth = Hits(np.array([[1, 2, -1], [4, 5, 6]]), np.array([[1, 1, -np.inf], [1, 1, 1]], np.float32))
    found = Hits(np.array([[2, 9, -1], [6, 5, 4]]), truth.scores)

    np.testing.assert_allclose(recall_at(found, truth, 3), [0.5, 1.0])


def test_the_automatic_factory_reaches_the_floor_on_50k_rows_of_512(make_clustered, index_files, tmp_path):
    vectors, queries = make_clustered(50_000, 512, 250, seed=5), make_clustered(200, 512, 250, seed=6)
    plan = plan_vectors(50_000, 512, VectorConfig(shard_rows=12_500, train_rows=10_000))
    index = VectorIndex.open(plan, *index_files(plan, vectors, tmp_path))
    truth = exact_search(queries, [vectors], 20)

    tuned, report = tune(index, queries, truth, 0.95, 20)

    assert tuned.factory == "IVF1024,SQfp16"
    assert report.lower_bound >= 0.95, asdict(report)
    assert tuned.nprobe < 256, asdict(report)
