"""Batches come in order with what was retrieved for them, however long each retrieval takes."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from remembrandt.errors import ServiceError
from remembrandt.retrieval import Prefetcher


def batches(start: int) -> Iterator[list[int]]:
    return iter([[n, n * n] for n in range(start, 30)])


def slow_sum(batch: list[int]) -> int:
    time.sleep(random.Random(batch[0]).random() / 100)
    return sum(batch)


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_order_and_results_do_not_depend_on_timing(depth: int) -> None:
    with Prefetcher(batches, slow_sum, depth) as prefetcher:
        steps = list(prefetcher)
    assert [(step.position, step.batch, step.found) for step in steps] == [
        (n, [n, n * n], n + n * n) for n in range(30)
    ]


@pytest.mark.parametrize("stop", [0, 1, 17, 29])
def test_a_run_that_stops_goes_on_from_its_position(stop: int) -> None:
    with Prefetcher(batches, slow_sum, depth=4) as first:
        seen = [next(first).found for _ in range(stop)]
        position = first.position
    with Prefetcher(batches, slow_sum, depth=2, position=position) as second:
        seen += [step.found for step in second]
    assert position == stop
    assert seen == [n + n * n for n in range(30)]


def test_exactly_depth_batches_are_retrieved_ahead_of_the_one_in_use() -> None:
    read: list[int] = []
    started: list[int] = []

    def numbered(start: int) -> Iterator[int]:
        for n in range(start, 10):
            read.append(n)
            yield n

    with Prefetcher(numbered, started.append, depth=3) as prefetcher:
        next(prefetcher)
        assert read == [0, 1, 2, 3]
        next(prefetcher)
        assert read == [0, 1, 2, 3, 4]
    assert set(started) <= set(read)


def test_waiting_is_measured_and_is_nothing_where_retrieval_was_ready() -> None:
    release = threading.Event()

    def retrieve(batch: list[int]) -> None:
        if batch[0] == 0:
            release.wait(5)

    with Prefetcher(batches, retrieve, depth=2) as prefetcher:
        threading.Timer(0.5, release.set).start()
        assert next(prefetcher).wait_seconds >= 0.2
        time.sleep(0.05)
        assert next(prefetcher).wait_seconds < 0.1


def test_a_retrieval_that_fails_raises_when_its_batch_is_due() -> None:
    def retrieve(batch: list[int]) -> int:
        if batch[0] == 3:
            raise ServiceError("no answer")
        return batch[0]

    with Prefetcher(batches, retrieve, depth=5) as prefetcher:
        assert [next(prefetcher).found for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ServiceError, match="no answer"):
            next(prefetcher)
        assert prefetcher.position == 3


def test_a_finished_run_stays_finished() -> None:
    prefetcher = Prefetcher(batches, slow_sum, position=28)
    assert len(list(prefetcher)) == 2
    assert list(prefetcher) == []


def test_each_thread_begins_as_it_is_told() -> None:
    begun: set[str] = set()

    def begin() -> None:
        begun.add(threading.current_thread().name)

    def has_begun(_: list[int]) -> bool:
        return threading.current_thread().name in begun

    with Prefetcher(batches, has_begun, depth=2, begin=begin) as prefetcher:
        assert all(step.found for step in prefetcher)
