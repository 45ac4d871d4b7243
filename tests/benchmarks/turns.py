"""Training loops that take their steps in turns, so that a machine that gets slower is slow to all of them."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from remembrandt.training.feeding import Fed
from remembrandt.training.job import TrainJob
from remembrandt.training.loop import Trainer

WARM_UP = 4


class Turns:
    """A baton that goes around: whoever holds it computes, the others wait."""

    def __init__(self, names: Sequence[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._waiting = list(names)
        self._start: float | None = None
        self._changed = threading.Condition()

    def take(self, name: str) -> None:
        """Ends the step before and passes the baton; returns when it has come around."""
        with self._changed:
            self._end(name, stays=True)
            while self._waiting[0] != name:
                self._changed.wait()
            self._start = time.perf_counter()

    def leave(self, name: str) -> None:
        """After the last step."""
        with self._changed:
            self._end(name, stays=False)

    def _end(self, name: str, stays: bool) -> None:
        if self._start is None or self._waiting[0] != name:
            return
        self.seconds[name].append(time.perf_counter() - self._start)
        self._start = None
        self._waiting = [*self._waiting[1:], *([name] if stays else [])]
        self._changed.notify_all()


@dataclass
class TimedTrainer(Trainer):
    """Takes its steps in turns; leaves out checkpoints and the finished model."""

    turns: Turns | None = None
    name: str = ""
    waits: list[float] = field(default_factory=list)

    def _steps(self) -> Iterator[list[Fed]]:
        assert self.turns is not None
        batches = super()._steps()
        try:
            while self.step < self.loop.steps:
                # Taking a batch lets the next one be made ready: that is work of this turn, not of the following one.
                self.turns.take(self.name)
                feds = next(batches)
                self.waits.append(sum(fed.retrieval_wait_seconds for fed in feds))
                yield feds
        finally:
            cast(Any, batches).close()

    def _checkpoint(self) -> None:
        assert self.turns is not None
        self.turns.leave(self.name)

    def _finish(self) -> None:
        return


def trainer_of(job: TrainJob, turns: Turns, name: str) -> TimedTrainer:
    """A run, ready to start."""
    objective, feed = job.build(torch.device("cpu"))
    return TimedTrainer(job, objective, feed, torch.device("cpu"), 0, lambda folder, step: None, turns=turns, name=name)


def run_in_turns(turns: Turns, loops: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of the steps of every loop after the warm-up, the n-th of all taken one after the other."""
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            loops[name]()
        except BaseException as error:  # noqa: BLE001 - it is raised again where all are waited for
            failures.append(error)
        finally:
            turns.leave(name)

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in loops]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failures:
        threads[0].join(0.5)
    if failures:
        raise failures[0]
    return {name: own[WARM_UP:] for name, own in turns.seconds.items()}


def ratio(own: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long a step takes: the median over pairs."""
    return statistics.median(a / b for a, b in zip(own, others, strict=True))
