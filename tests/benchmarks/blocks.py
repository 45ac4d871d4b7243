"""What feeds differ by, and nothing else: one training process is fed by each in turn, some steps at a time.

Processes of one loop differ by some hundredths for as long as they live (where their memory lies, which thread waits
for which). Here the network, its memory and its threads are the same; only where the neighbours come from changes.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.models.objective import Tensors
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeding import Feed
from remembrandt.training.job import TrainJob
from remembrandt.training.order import Order
from tests.benchmarks.turns import WARM_UP, Taken, Turn, run_in_turns, train_fed

_AT_ONCE = 256
BLOCK = 8
"""Steps until the next feed. Each is fed ahead; its last steps, in which another's batches are made, do not count."""


class FeedInBlocks:
    """A `Feed` whose neighbours come from several feeds of the same examples, a block of steps each."""

    def __init__(self, feeds: Sequence[Feed], loop: LoopConfig) -> None:
        self.identity = feeds[0].identity
        self._feeds = feeds
        order = Order(feeds[0].num_examples, loop.seed)
        self._steps = {order.batch(step, loop.batch_size).tobytes(): step for step in range(2 * loop.steps)}

    @property
    def num_examples(self) -> int:
        """As the protocol says."""
        return self._feeds[0].num_examples

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """As the protocol says."""
        return self._feeds[0].read(indices_B)

    def retrieve(self, indices_B: NDArray[np.int64], batch: Tensors) -> Tensors:
        """As the protocol says, from the feed whose turn the batch is."""
        number = self._steps[indices_B.tobytes()] // BLOCK % len(self._feeds)
        return self._feeds[number].retrieve(indices_B, batch)

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """As the protocol says."""
        return self._feeds[0].neighbor_images(indices_B)

    def close(self) -> None:
        """As the protocol says."""
        for feed in self._feeds:
            feed.close()


def run_in_blocks(jobs: Mapping[str, TrainJob], after: Collection[str] = ()) -> dict[str, Taken]:
    """Trains one network, fed as each of the jobs says in turn; the steps of each that count, pairs beside each other.

    Args:
        jobs: of the same network and train set; the first one's loop counts. The first round is a warm-up.
        after: those of them that have been through the train set before.
    """
    loop = next(iter(jobs.values())).loop
    whole = run_in_turns({"blocks": partial(_train, jobs, after)})["blocks"]
    counted = {name: Taken() for name in jobs}
    for step in range(len(jobs) * BLOCK, loop.steps):
        if step % BLOCK < BLOCK - loop.prefetch:
            own = counted[list(jobs)[step // BLOCK % len(jobs)]]
            own.seconds.append(whole.seconds[step - WARM_UP])
            own.waits.append(whole.waits[step - WARM_UP])
    return counted


def steps_for(rounds: int, kinds: int) -> int:
    """Steps of a loop in which `kinds` feeds have `rounds` blocks that count."""
    return (rounds + 1) * kinds * BLOCK


def _train(jobs: Mapping[str, TrainJob], after: Collection[str], turn: Turn) -> None:
    objectives, feeds = zip(*(job.build(torch.device("cpu")) for job in jobs.values()), strict=True)
    for name, feed in zip(jobs, feeds, strict=True):
        for first in range(0, feed.num_examples, _AT_ONCE) if name in after else ():
            indices = np.arange(first, min(first + _AT_ONCE, feed.num_examples))
            feed.retrieve(indices, feed.read(indices))
    whole = next(iter(jobs.values()))
    train_fed(whole, objectives[0], FeedInBlocks(feeds, whole.loop), turn)
