import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from remembrandt.training.feeding import Plan
from remembrandt.training.order import Order


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 64), st.integers(0, 2**40))
def test_every_epoch_shows_every_example_once(examples: int, size: int, seed: int) -> None:
    order = Order(examples, seed)
    steps = -(-2 * examples // size)
    seen = np.concatenate([order.batch(step, size) for step in range(steps)])
    assert sorted(seen[:examples]) == list(range(examples))
    assert sorted(seen[examples : 2 * examples]) == list(range(examples))


def test_epochs_and_seeds_differ() -> None:
    first, second = Order(1000, 0).batch(0, 1000), Order(1000, 0).batch(1, 1000)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order(1000, 1).batch(0, 1000))
    seeds = np.concatenate([Order(1000, 0).seeds(step, 500) for step in range(4)])
    assert len(np.unique(seeds)) == 2000 and seeds.min() >= 0


def test_a_permutation_is_well_mixed() -> None:
    order = Order(100_000, 3).batch(0, 100_000)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_a_billion_examples_need_no_memory() -> None:
    batch = Order(10**9, 0).batch(123_456, 64)
    assert batch.min() >= 0 and batch.max() < 10**9 and len(set(batch.tolist())) == 64


def test_workers_and_parts_share_the_same_batches() -> None:
    order = Order(97, 5)

    def batches(workers: int, accumulation: int) -> list[list[int]]:
        plans = [Plan(order, 20, 12, rank, workers, accumulation).micros(0) for rank in range(workers)]
        steps = []
        for _ in range(20):
            parts = [[next(plan) for _ in range(accumulation)] for plan in plans]
            steps.append([i for worker in parts for micro in worker for i in micro.indices_B.tolist()])
        return steps

    assert batches(1, 1) == batches(2, 1) == batches(3, 2) == batches(1, 4)


def test_a_plan_goes_on_anywhere() -> None:
    plan = Plan(Order(50, 0), 10, 8, 0, 1, 2)
    start = plan.micros(0)
    unbroken = [next(start) for _ in range(12)]
    resumed = next(plan.micros(7))
    assert resumed.step == unbroken[7].step == 3
    assert np.array_equal(resumed.indices_B, unbroken[7].indices_B)
    assert np.array_equal(resumed.seeds_B, unbroken[7].seeds_B)
