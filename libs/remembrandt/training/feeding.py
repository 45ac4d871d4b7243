"""From indices to prepared batches, some steps ahead of the one that computes.

Letters in names: B examples.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remembrandt.models.objective import Objective, Tensors
from remembrandt.retrieval import Prefetcher
from remembrandt.training.order import Order


class Feed(Protocol):
    """Where the examples of a run come from. Reading and retrieving are pure and run in several threads.

    Attributes:
        identity: everything outside the configuration that a loss depends on: train set, database version, encoder and
            first-stage fingerprints. A run goes on only with the same identity.
    """

    identity: Mapping[str, str]

    @property
    def num_examples(self) -> int:
        """Examples of the train set; indices run from 0."""

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """The examples, as CPU tensors."""

    def retrieve(self, indices_B: NDArray[np.int64], batch: Tensors) -> Tensors:
        """The batch with its neighbours; unchanged where nothing is retrieved."""

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """For the log: the pictures of each example's neighbours, or nothing."""

    def close(self) -> None:
        """Gives back files and actors."""


@dataclass(frozen=True)
class Micro:
    """What one pass through the network needs.

    Attributes:
        step: optimiser step, from 0.
        indices_B, seeds_B: this worker's examples.
    """

    step: int
    indices_B: NDArray[np.int64]
    seeds_B: NDArray[np.int64]


@dataclass(frozen=True)
class Fed:
    """A prepared part of a batch.

    Attributes:
        data_wait_seconds: how long the step waited for examples to be read and prepared.
        retrieval_wait_seconds: how long it waited for neighbours. A wait is shared out by what the batch spent its
            time on.
    """

    micro: Micro
    tensors: Tensors
    data_wait_seconds: float
    retrieval_wait_seconds: float


@dataclass(frozen=True)
class Plan:
    """How the batches of a run are cut."""

    order: Order
    batch_size: int
    rank: int
    workers: int
    accumulation: int

    def micros(self, position: int) -> Iterator[Micro]:
        """This worker's parts from part `position` on, without end."""
        share = self.batch_size // self.workers
        size = share // self.accumulation
        while True:
            step, part = divmod(position, self.accumulation)
            mine = slice(self.rank * share + part * size, self.rank * share + (part + 1) * size)
            yield Micro(
                step,
                self.order.batch(step, self.batch_size)[mine],
                self.order.seeds(step, self.batch_size)[mine],
            )
            position += 1


def feed_worker(
    feed: Feed, objective: Objective, plan: Plan, step: int, depth: int, begin: Callable[[], None] | None = None
) -> Iterator[Fed]:
    """This worker's batches from optimiser step `step` on, `depth` of them made ahead by threads that call `begin`."""

    def make(micro: Micro) -> tuple[Tensors, float]:
        """The prepared batch, and the share of its time that went into retrieval."""
        start = time.perf_counter()
        batch = feed.read(micro.indices_B)
        read = time.perf_counter()
        batch = feed.retrieve(micro.indices_B, batch)
        retrieved = time.perf_counter()
        batch = objective.prepare(batch, micro.seeds_B)
        return batch, (retrieved - read) / max(time.perf_counter() - start, 1e-9)

    with Prefetcher(plan.micros, make, depth, step * plan.accumulation, begin) as prefetcher:
        for item in prefetcher:
            tensors, share = item.found
            waited = item.wait_seconds
            yield Fed(item.batch, tensors, waited * (1 - share), waited * share)
