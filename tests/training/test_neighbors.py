"""Neighbours that are asked for once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from remembrandt.training.feeds.neighbors import RememberedNeighbors
from remembrandt.training.order import Order

EXAMPLES, K, BATCH = 90, 3, 8


class Rows:
    """Neighbours that tell whose they are, and who was asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def ids(self, indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        self.asked += indices_B.tolist()
        return self.of(indices_B)

    @staticmethod
    def of(indices_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return 100 * indices_B[:, None] + np.arange(K)


def batches(count: int) -> list[NDArray[np.int64]]:
    order = Order(EXAMPLES, 0)
    return [order.batch(step, BATCH) for step in range(count)]


def test_each_example_is_asked_for_once_in_all_epochs() -> None:
    source = Rows()
    neighbors = RememberedNeighbors(source, EXAMPLES, K)
    for indices in batches(3 * EXAMPLES // BATCH):
        assert np.array_equal(neighbors.ids(indices), Rows.of(indices))
    assert sorted(source.asked) == list(range(EXAMPLES))


def test_what_several_threads_ask_for_is_right() -> None:
    neighbors = RememberedNeighbors(Rows(), EXAMPLES, K)
    asked = batches(400)
    with ThreadPoolExecutor(8) as threads:
        for indices, found in zip(asked, threads.map(neighbors.ids, asked), strict=True):
            assert np.array_equal(found, Rows.of(indices))


def test_a_failure_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    source, indices = Rows(), np.arange(BATCH)
    neighbors = RememberedNeighbors(source, EXAMPLES, K)
    with monkeypatch.context() as away:
        away.setattr(source, "ids", lambda _: (_ for _ in ()).throw(ConnectionError("away")))
        with pytest.raises(ConnectionError):
            neighbors.ids(indices)
    assert np.array_equal(neighbors.ids(indices), Rows.of(indices))


@pytest.mark.parametrize(("examples", "fits"), [(1_281_167, True), (400_000_000, False)])
def test_answers_are_kept_while_they_are_few(examples: int, fits: bool) -> None:
    assert RememberedNeighbors.fits(examples, 4) is fits
