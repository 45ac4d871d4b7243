"""Batches and their neighbours, found for several batches at once."""

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.errors import ServiceError
from remembrandt.models.objective import Objective, Tensors
from remembrandt.training.feeding import Fed, Plan, feed_worker, groups_of
from remembrandt.training.order import Order

EXAMPLES, BATCH, STEPS, K = 300, 6, 40, 3
PLAN = Plan(Order(EXAMPLES, 0), STEPS, BATCH, 0, 1, 1)


class Numbers:
    """A `Feed` whose examples are their own indices, and whose neighbours tell whose they are."""

    identity: Mapping[str, str] = {}
    num_examples = EXAMPLES

    def __init__(self, find: Callable[[NDArray[np.int64]], None] = lambda _: None) -> None:
        self.asked: list[list[int]] = []
        self._find = find

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        return {"own_B": torch.from_numpy(indices_B)}

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        self._find(indices_N)
        self.asked.append(indices_N.tolist())
        return 100 * indices_N[:, None] + np.arange(K)

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        return {**batch, "ids_BK": torch.from_numpy(ids_BK)}

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        return [[] for _ in indices_B]

    def close(self) -> None:
        self.asked.clear()


class Unchanged:
    """What a run needs of an `Objective` before its network."""

    def prepare(self, batch: Tensors, seeds_B: NDArray[np.int64]) -> Tensors:
        return {**batch, "seeds_B": torch.from_numpy(seeds_B)}


def feed(numbers: Numbers, step: int = 0, depth: int = 2, workers: int = 1, accumulation: int = 1) -> list[Fed]:
    plan = Plan(Order(EXAMPLES, 0), STEPS, BATCH, 0, workers, accumulation)
    return list(feed_worker(numbers, cast(Objective, Unchanged()), plan, step, depth))


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("step", [0, 13])
def test_every_batch_has_its_own_neighbours(depth: int, workers: int, accumulation: int, step: int) -> None:
    numbers = Numbers()
    fed = feed(numbers, step, depth, workers, accumulation)
    plan = Plan(Order(EXAMPLES, 0), STEPS, BATCH, 0, workers, accumulation)
    expected = list(plan.micros(step * accumulation))
    assert [own.micro.step for own in fed] == [micro.step for micro in expected]
    for own, micro in zip(fed, expected, strict=True):
        assert own.tensors["own_B"].tolist() == micro.indices_B.tolist()
        assert own.tensors["seeds_B"].tolist() == micro.seeds_B.tolist()
        assert own.tensors["ids_BK"].tolist() == (100 * micro.indices_B[:, None] + np.arange(K)).tolist()
    # Nothing is asked for beyond the end of the run, and nothing twice.
    assert sorted(i for group in numbers.asked for i in group) == sorted(i for m in expected for i in m.indices_B)


def test_few_questions_are_asked() -> None:
    numbers = Numbers()
    feed(numbers)
    assert sorted(map(len, numbers.asked), reverse=True) == [8 * BATCH] * 4 + [4 * BATCH, 2 * BATCH, BATCH, BATCH]


@pytest.mark.parametrize(
    ("batch", "sizes"), [(64, [1, 2, 4, 8, 8, 8, 8, 1]), (256, [1] + 19 * [2] + [1]), (600, [1] * 40)]
)
def test_groups_grow_while_they_are_small(batch: int, sizes: list[int]) -> None:
    plan = Plan(Order(10**6, 0), STEPS, batch, 0, 1, 1)
    groups = list(groups_of(plan.micros(0), batch))
    assert [len(group) for group in groups] == sizes
    assert [micro.step for group in groups for micro in group] == list(range(STEPS))


def test_a_failure_ends_the_run_where_neighbours_are_missing() -> None:
    calls = count()

    def fail_fourth(_: NDArray[np.int64]) -> None:
        if next(calls) == 3:
            raise ServiceError("the database is away")

    fed: list[Fed] = []
    with pytest.raises(ServiceError, match="away"):
        fed.extend(feed_worker(Numbers(fail_fourth), cast(Objective, Unchanged()), PLAN, 0, 0))
    assert [own.micro.step for own in fed] == list(range(7))


def test_waiting_for_neighbours_is_told_apart() -> None:
    fed = feed(Numbers(lambda _: time.sleep(0.2)))
    assert fed[0].retrieval_wait_seconds > 0.1
    assert sum(own.retrieval_wait_seconds for own in fed) > 3 * sum(own.data_wait_seconds for own in fed)
