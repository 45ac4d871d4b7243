"""From indices to prepared batches, some steps ahead of the one that computes.

Neighbours are found for several batches at once, because a search of many takes less of a core for each; then every
batch is read, joined with its own neighbours and prepared.

Letters in names: B examples of a batch, N examples of several, K neighbours.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remembrandt.models.objective import Objective, Tensors
from remembrandt.retrieval import Prefetcher
from remembrandt.training.order import Order

FOUND_TOGETHER, _EXAMPLES_TOGETHER = 8, 512
"""Parts of batches whose neighbours are asked for at once, when a run has got going; fewer if they have more examples.

512 examples in one question take .4 times as much of a core as in eight (13,873 rows, eight filters; asking included).
"""


class Feed(Protocol):
    """Where the examples of a run come from. Reading, finding and joining are pure and run in several threads.

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

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row ids of the examples' neighbours (N, K), the same whatever they are asked for with; K = 0 without any."""

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        """The batch with what its neighbours are."""

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
    steps: int
    batch_size: int
    rank: int
    workers: int
    accumulation: int

    @property
    def micro_size(self) -> int:
        """Examples of one part."""
        return self.batch_size // self.workers // self.accumulation

    def micros(self, position: int) -> Iterator[Micro]:
        """This worker's parts from part `position` on, to the last of the run."""
        share, size = self.batch_size // self.workers, self.micro_size
        while position < self.steps * self.accumulation:
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
    """This worker's batches from optimiser step `step` on, `depth` of them made ahead by threads that call `begin`.

    Neighbours are found for one group of batches further.
    """
    groups = groups_of(plan.micros(step * plan.accumulation), plan.micro_size)

    def find(group: list[Micro]) -> NDArray[np.int64]:
        return feed.find(np.concatenate([micro.indices_B for micro in group]))

    def make(found: _Found) -> tuple[Tensors, float]:
        """The prepared batch, and the share of its time that went into its neighbours."""
        start = time.perf_counter()
        batch = feed.read(found.micro.indices_B)
        read = time.perf_counter()
        batch = feed.join(batch, found.ids_BK)
        joined = time.perf_counter()
        batch = objective.prepare(batch, found.micro.seeds_B)
        return batch, (joined - read) / max(time.perf_counter() - start, 1e-9)

    with (
        Prefetcher(lambda _: groups, find, min(1, depth), begin=begin) as finder,
        Prefetcher(lambda _: _one_by_one(finder), make, depth, begin=begin) as maker,
    ):
        for item in maker:
            tensors, share = item.found
            waited = item.wait_seconds
            yield Fed(item.batch.micro, tensors, waited * (1 - share), item.batch.wait_seconds + waited * share)


def groups_of(micros: Iterator[Micro], examples: int) -> Iterator[list[Micro]]:
    """Parts of so many examples whose neighbours are found at once: 1, 2, 4, … so that the first step soon has its."""
    size, most = 1, max(1, min(FOUND_TOGETHER, _EXAMPLES_TOGETHER // examples))
    while group := list(islice(micros, size)):
        yield group
        size = min(most, 2 * size)


@dataclass(frozen=True)
class _Found:
    """A part and its neighbours; the first of a group bears the wait for all of them."""

    micro: Micro
    ids_BK: NDArray[np.int64]
    wait_seconds: float


def _one_by_one(finder: Prefetcher[list[Micro], NDArray[np.int64]]) -> Iterator[_Found]:
    for group in finder:
        first, wait_seconds = 0, group.wait_seconds
        for micro in group.batch:
            last = first + len(micro.indices_B)
            yield _Found(micro, group.found[first:last], wait_seconds)
            first, wait_seconds = last, 0.0
