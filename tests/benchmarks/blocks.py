"""What feeds differ by, and nothing else: one training process is fed by each in turn, some steps at a time.

Processes of one loop differ by some hundredths for as long as they live (where their memory lies, which thread waits
for which). Here the network, its memory and its threads are the same; only where the neighbours come from changes.

Neighbours of eight steps, a block, are found at once while earlier steps are taken: those of the next block but one. So
with two feeds in turn each finds its neighbours during steps of its own.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.models.objective import Tensors
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeding import FOUND_TOGETHER, Feed
from remembrandt.training.job import TrainJob
from remembrandt.training.order import Order
from tests.benchmarks.turns import WARM_UP, Taken, Turn, run_in_turns, train_fed

BLOCK = FOUND_TOGETHER
"""Steps until the next feed."""
_RAMP = FOUND_TOGETHER - 1
"""A run first finds neighbours of 1, 2 and 4 steps."""


class FeedInBlocks:
    """A `Feed` whose neighbours come from two feeds of the same examples, a block of steps each."""

    def __init__(self, feeds: tuple[Feed, Feed], loop: LoopConfig) -> None:
        self.identity = feeds[0].identity
        self._feeds = feeds
        self._batch_size = loop.batch_size
        order = Order(feeds[0].num_examples, loop.seed)
        self._steps = {order.batch(step, loop.batch_size).tobytes(): step for step in range(2 * loop.steps)}

    @property
    def num_examples(self) -> int:
        """As the protocol says."""
        return self._feeds[0].num_examples

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """As the protocol says, and which feed's batch it is."""
        number = self._number(indices_B)
        return {**self._feeds[number].read(indices_B), "feed": torch.tensor(number)}

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the protocol says, from the feed whose turn it is: a group is never of two."""
        return self._feeds[self._number(indices_N)].find(indices_N)

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        """As the protocol says, by the batch's own feed."""
        return self._feeds[int(batch.pop("feed"))].join(batch, ids_BK)

    def _number(self, indices_N: NDArray[np.int64]) -> int:
        return block_of(self._steps[indices_N[: self._batch_size].tobytes()]) % 2

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """As the protocol says."""
        return self._feeds[0].neighbor_images(indices_B)

    def close(self) -> None:
        """As the protocol says."""
        for feed in self._feeds:
            feed.close()


def block_of(step: int) -> int:
    """Number of its block; the first is one of the second feed, and before it comes a short one of the first."""
    return (step + BLOCK - _RAMP) // BLOCK


def steps_for(rounds: int) -> int:
    """Steps of a loop in which each feed has so many blocks that count."""
    return _RAMP + (2 * rounds + 2) * BLOCK


def run_in_blocks(one: TrainJob, other: TrainJob) -> tuple[Taken, Taken]:
    """Trains one network, fed as either job says in turn; the steps of each, without those of its first block.

    Args:
        one: its loop counts.
        other: of the same network and train set.
    """
    loop = one.loop
    whole = run_in_turns({"blocks": partial(_train, one, other)})["blocks"]
    counted = (Taken(), Taken())
    for step in range(_RAMP + 2 * BLOCK, loop.steps):
        own = counted[block_of(step) % 2]
        own.seconds.append(whole.seconds[step - WARM_UP])
        own.waits.append(whole.waits[step - WARM_UP])
    return counted


def ratio_of_blocks(own: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long a step takes on average: the median over neighbouring blocks."""
    blocks = [slice(first, first + BLOCK) for first in range(0, len(own), BLOCK)]
    return statistics.median(sum(own[block]) / sum(others[block]) for block in blocks)


def _train(one: TrainJob, other: TrainJob, turn: Turn) -> None:
    objective, feed = one.build(torch.device("cpu"))
    _, other_feed = other.build(torch.device("cpu"))
    train_fed(one, objective, FeedInBlocks((feed, other_feed), one.loop), turn)
