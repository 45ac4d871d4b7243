"""Retrieval that runs ahead of the training step, so that the step does not wait for it."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

BatchT = TypeVar("BatchT")
FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Prefetched(Generic[BatchT, FoundT]):
    """One batch with what was retrieved for it.

    Attributes:
        position: number of the batch, from 0 at the start of training.
        wait_seconds: how long the step had to wait for the retrieval (`retrieval_wait_seconds`); the time in which the
            batch itself was read is not in it.
    """

    position: int
    batch: BatchT
    found: FoundT
    wait_seconds: float


class Prefetcher(Generic[BatchT, FoundT]):
    """Iterates over batches in order, and keeps the retrieval of the next `depth` batches under way.

    Order and results depend on the batches alone, not on timing: an unbroken run and one that stops and goes on from
    `position` see the same. A retrieval that fails raises when its batch is due, and `position` stays there.

    Args:
        batches: gives the batches from a position on: `batches(p)` must start with batch number p.
        retrieve: what to retrieve for a batch, for example a strategy over a pool. It runs in threads.
        depth: batches ahead of the one in use; 0 retrieves when asked.
        position: number of the first batch.
        begin: called in each of its threads before all else.
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[BatchT]],
        retrieve: Callable[[BatchT], FoundT],
        depth: int = 2,
        position: int = 0,
        begin: Callable[[], None] | None = None,
    ) -> None:
        assert depth >= 0 and position >= 0
        self.position = position
        self._batches: Iterator[BatchT] = iter(batches(position))
        self._retrieve, self._depth = retrieve, depth
        self._ahead: deque[tuple[BatchT, Future[FoundT]]] = deque()
        self._threads = ThreadPoolExecutor(depth + 1, thread_name_prefix="prefetch", initializer=begin)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Prefetched[BatchT, FoundT]:
        self._fill()
        if not self._ahead:
            self.close()
            raise StopIteration
        batch, future = self._ahead[0]
        start = time.perf_counter()
        found = future.result()
        waited = time.perf_counter() - start
        self._ahead.popleft()
        self.position += 1
        return Prefetched(self.position - 1, batch, found, waited)

    def close(self) -> None:
        """Gives up what was retrieved ahead; what runs already is waited for."""
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """One batch is due now, and `depth` more are ahead of it."""
        while len(self._ahead) <= self._depth:
            try:
                batch = next(self._batches)
            except StopIteration:
                return
            self._ahead.append((batch, self._threads.submit(self._retrieve, batch)))
