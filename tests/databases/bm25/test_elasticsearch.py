"""Loading, publishing and searching a real Elasticsearch, and what happens when it goes away."""

import dataclasses
import pickle
import threading
import time

import numpy as np
import pytest

from remembrandt.databases.bm25 import Bm25Config, Bm25Document, ElasticsearchLoader, open_bm25
from remembrandt.databases.hits import PAD_ID, Filter
from remembrandt.errors import ConfigError, SearchError, ServiceError
from tests.support.elasticsearch_node import ElasticsearchNode, build_launcher
from tests.support.processes import free_ports

pytestmark = pytest.mark.elasticsearch


def many(count: int) -> list[Bm25Document]:
    return [Bm25Document(row, f"fox number {row} of {row % 97}", key=str(row)) for row in range(count)]


def test_a_loaded_index_is_counted_and_described(new_loader, as_documents, emoji_captions):
    loader = new_loader()
    documents = as_documents(emoji_captions)

    loader.create(len(documents))
    written = loader.write(documents)
    info = loader.finish(len(documents))

    assert written == len(documents)
    assert dataclasses.asdict(info) == {
        "backend": "elasticsearch",
        "analyzer": "standard",
        "k1": 1.2,
        "b": 0.75,
        "documents": len(documents),
        "index": loader.index,
        "alias": None,
        "fields": ("artist", "style"),
        "settings": {"shards": 1, "replicas": 0},
    }


def test_nothing_is_refreshed_while_loading_and_the_configured_pace_holds_afterwards(new_loader, elasticsearch_node):
    loader = new_loader(refresh_interval="7s")

    def interval() -> str:
        with elasticsearch_node.client() as client:
            return client.indices.get_settings(index=loader.index)[loader.index]["settings"]["index"][
                "refresh_interval"
            ]

    loader.create(1)
    while_loading = interval()
    loader.write([Bm25Document(0, "fox")])
    loader.finish(1)

    assert (while_loading, interval()) == ("-1", "7s")


def test_loading_again_changes_nothing(new_loader, elastic_config, elasticsearch_node):
    loader = new_loader()
    for _ in range(3):
        loader.create(500)
        loader.write(many(500))
    info = loader.finish(500)

    with elasticsearch_node.client() as client:
        assert client.indices.stats(index=loader.index)["_all"]["primaries"]["docs"] == {
            "count": 500,
            "deleted": 0,
            "total_size_in_bytes": pytest.approx(0, abs=10**9),
        }
    assert loader.finish(500) == info


def test_tasks_on_other_nodes_load_the_same_index(new_loader):
    loader = new_loader()
    loader.create(1000)
    copies = [pickle.loads(pickle.dumps(loader)) for _ in range(4)]

    threads = [threading.Thread(target=copy.write, args=(many(1000)[part::4],)) for part, copy in enumerate(copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert loader.finish(1000).documents == 1000


def test_a_missing_document_fails_the_count(new_loader):
    loader = new_loader()
    loader.create(10)
    loader.write(many(9))

    with pytest.raises(ServiceError, match="holds 9 documents instead of 10"):
        loader.finish(10)


def test_a_document_that_is_refused_is_named(new_loader):
    loader = new_loader()
    loader.create(2)

    with pytest.raises(ServiceError, match=rf"refuses row 1 of index {loader.index}"):
        loader.write([Bm25Document(0, "fox"), Bm25Document(1, "fox", key="k" * 40_000)])


def test_an_index_can_be_merged_to_one_segment(new_loader, elasticsearch_node):
    loader = new_loader(force_merge=True, bulk_documents=100)
    loader.create(2000)
    loader.write(many(2000))
    loader.finish(2000)

    with elasticsearch_node.client() as client:
        segments = client.indices.stats(index=loader.index)["_all"]["primaries"]["segments"]["count"]
    assert segments == 1


def test_the_alias_moves_in_one_step_and_the_old_index_stays(new_loader, elasticsearch_node):
    old, new = new_loader(), new_loader()
    for loader, words in ((old, "old"), (new, "new")):
        loader.create(1)
        loader.write([Bm25Document(0, words)])
        loader.finish(1)
    alias = f"alias-{old.index}"
    old.move_alias(alias)
    answers, stop = [], threading.Event()

    def watch() -> None:
        with elasticsearch_node.client() as client:
            while not stop.is_set():
                hits = client.search(index=alias, query={"match_all": {}})["hits"]["hits"]
                answers.append([hit["_source"]["text"] for hit in hits])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        new.move_alias(alias)
        old.move_alias(alias)
    new.move_alias(alias)
    stop.set()
    watcher.join()

    assert all(answer in (["old"], ["new"]) for answer in answers)
    with elasticsearch_node.client() as client:
        assert list(client.indices.get_alias(name=alias)) == [new.index]
        assert client.indices.exists(index=old.index)


def test_deleting_an_index_twice_is_no_error(new_loader):
    loader = new_loader()
    loader.create(1)
    loader.delete()
    loader.delete()


def test_more_results_than_documents_are_padded(load):
    hits = load(many(3)).search(["fox"], 5)

    assert hits.ids.tolist() == [[0, 1, 2, PAD_ID, PAD_ID]]
    assert np.isneginf(hits.scores[0, 3:]).all()


@pytest.mark.parametrize("k", [0, 10_001])
def test_k_out_of_range_is_an_error(load, k):
    with pytest.raises(SearchError, match="k must be from 1 to 10,000"):
        load(many(1)).search(["fox"], k)


def test_an_unknown_filter_field_is_an_error_that_names_the_nearest(load, as_documents):
    searcher = load(as_documents(["fox"]))

    with pytest.raises(SearchError, match="unknown filter field 'licens': did you mean 'licence'"):
        searcher.search(["fox"], 1, Filter(equals={"licens": ("MIT",)}))


def test_an_index_that_is_gone_is_an_error_when_opened(load, new_loader, elastic_config):
    loader = new_loader()
    loader.create(0)
    info = loader.finish(0)
    loader.delete()

    with pytest.raises(ServiceError, match=f"has no index {loader.index}"):
        open_bm25(info, None, elastic_config.url, elastic_config)


def test_no_server_at_the_start_is_one_line_within_seconds():
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    loader = ElasticsearchLoader(Bm25Config(backend="elasticsearch", url=url), "test")
    start = time.monotonic()

    with pytest.raises(ServiceError, match=f"Elasticsearch at {url} is not reachable") as caught:
        loader.create(10)

    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_no_address_is_an_error_that_says_where_to_put_one():
    with pytest.raises(ConfigError, match=r"set bm25\.url or ELASTICSEARCH_URL"):
        ElasticsearchLoader(Bm25Config(backend="elasticsearch"), "test")


@pytest.mark.chaos
def test_a_load_goes_on_where_a_killed_node_left_it(new_loader, elasticsearch_node, elastic_config, embed):
    documents = many(20_000)
    loader = new_loader(retry_seconds=1, bulk_documents=500)
    loader.create(len(documents))

    def killing():
        for document in documents:
            if document.id == 12_000:
                elasticsearch_node.kill()
            yield document

    with pytest.raises(ServiceError, match=r"is not reachable .* run again to go on"):
        loader.write(killing())
    elasticsearch_node.restart()
    loader.create(len(documents))
    loader.write(documents)
    info = loader.finish(len(documents))

    queries = [document.text for document in documents[::400]]
    theirs = open_bm25(info, None, elastic_config.url, elastic_config).search(queries, 10)
    ours = embed(documents).search(queries, 10)
    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.scores, theirs.scores)


@pytest.mark.chaos
def test_a_node_that_comes_back_in_time_costs_only_time(new_loader, elasticsearch_node):
    documents = many(6000)
    loader = new_loader(bulk_documents=500)
    loader.create(len(documents))
    restarting = threading.Thread(target=elasticsearch_node.restart)

    def interrupted():
        for document in documents:
            if document.id == 3000:
                elasticsearch_node.kill()
                restarting.start()
            yield document

    loader.write(interrupted())
    restarting.join()

    assert loader.finish(len(documents)).documents == len(documents)


@pytest.mark.chaos
def test_a_node_that_dies_under_a_search_is_one_line(load, elasticsearch_node, elastic_config, new_loader):
    loader = new_loader()
    loader.create(1)
    loader.write([Bm25Document(0, "fox")])
    info = loader.finish(1)
    searcher = open_bm25(info, None, elastic_config.url, elastic_config.model_copy(update={"retry_seconds": 1}))
    elasticsearch_node.kill()

    with pytest.raises(ServiceError, match="is not reachable"):
        searcher.search(["fox"], 1)

    elasticsearch_node.restart()
    assert searcher.search(["fox"], 1).ids.tolist() == [[0]]


@pytest.mark.slow
def test_a_node_that_refuses_most_requests_gets_every_document_in_the_end(tmp_path):
    build_launcher()
    node = ElasticsearchNode(tmp_path, ("thread_pool.write.size=1", "thread_pool.write.queue_size=1"))
    node.start()
    try:
        config = Bm25Config(url=node.url, replicas=0, bulk_threads=16, bulk_documents=50, shards=4)
        loader = ElasticsearchLoader(config, "busy")
        loader.create(8000)
        loader.write(many(8000))
        with node.client() as client:
            pool = next(iter(client.nodes.stats(metric="thread_pool")["nodes"].values()))["thread_pool"]["write"]
        assert pool["rejected"] > 0, "the node was never too busy, so this tested nothing"
        assert loader.finish(8000).documents == 8000
    finally:
        node.kill()
