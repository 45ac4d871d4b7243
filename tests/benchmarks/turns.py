"""Training loops that take their steps in turns, so that a machine that gets slower is slow to all of them.

Each has a process of its own, as a training worker has: OpenMP's threads wait by spinning, and stop doing so in a
process that has more of them than there are cores.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, cast

import ray
import torch
import torch.distributed as dist
from ray import cloudpickle

from remembrandt.allocation import OWN_ARENAS, keep_freed_memory
from remembrandt.models.objective import Objective
from remembrandt.training.feeding import Fed, Feed
from remembrandt.training.job import TrainJob
from remembrandt.training.loop import Trainer
from tests.support.processes import free_ports

WARM_UP = 4
_SPAWN = get_context("spawn")
_ALONE = {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


class _Semaphore(Protocol):
    def acquire(self) -> bool: ...

    def release(self) -> None: ...


@dataclass
class Taken:
    """Steps that were taken.

    Attributes:
        seconds: of each.
        waits: for live neighbours, of each.
    """

    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


@dataclass
class Turn:
    """One loop's place in the ring: it computes while it has the baton, which goes around as often as it has steps."""

    own: _Semaphore
    following: _Semaphore
    taken: Taken = field(default_factory=Taken)
    _start: float | None = None

    def take(self) -> None:
        """Ends the step before and passes the baton; returns when it has come around."""
        self.leave()
        self.own.acquire()
        self._start = time.perf_counter()

    def leave(self) -> None:
        """Ends the last step."""
        if self._start is not None:
            self.taken.seconds.append(time.perf_counter() - self._start)
            self._start = None
            self.following.release()


Loop = Callable[[Turn], None]
"""Takes its turns, all loops equally many."""


@dataclass
class TimedTrainer(Trainer):
    """Takes its steps in turns; leaves out checkpoints and the finished model."""

    turn: Turn | None = None

    def _steps(self) -> Iterator[list[Fed]]:
        assert self.turn is not None
        batches = super()._steps()
        try:
            while self.step < self.loop.steps:
                # Taking a batch lets the next one be made ready: that is work of this turn, not of the following one.
                self.turn.take()
                feds = next(batches)
                self.turn.taken.waits.append(sum(fed.retrieval_wait_seconds for fed in feds))
                yield feds
        finally:
            cast(Any, batches).close()

    def _checkpoint(self) -> None:
        assert self.turn is not None
        self.turn.leave()

    def _finish(self) -> None:
        return


def train_in_turns(job: TrainJob, turn: Turn) -> None:
    """A whole run, as a training worker does it."""
    objective, feed = job.build(torch.device("cpu"))
    train_fed(job, objective, feed, turn)


def train_fed(job: TrainJob, objective: Objective, feed: Feed, turn: Turn) -> None:
    """The run of a job that is built; closes the feed."""
    keep_freed_memory()
    try:
        TimedTrainer(job, objective, feed, torch.device("cpu"), 0, lambda folder, step: None, turn=turn).run()
    finally:
        feed.close()


def run_in_turns(loops: Mapping[str, Loop]) -> dict[str, Taken]:
    """Runs them beside each other; the n-th steps of all, after the warm-up, are taken one after the other.

    Raises:
        RuntimeError: one of them failed; it has said why.
    """
    batons = [_SPAWN.Semaphore(int(number == 0)) for number in range(len(loops))]
    context = ray.get_runtime_context()
    cluster = {"address": context.gcs_address, "namespace": context.namespace}
    receivers: dict[Connection, str] = {}
    processes = []
    os.environ |= OWN_ARENAS  # glibc reads it when a process starts
    for number, (name, loop) in enumerate(loops.items()):
        receiver, sender = _SPAWN.Pipe(duplex=False)
        turn = (batons[number], batons[(number + 1) % len(loops)])
        process = _SPAWN.Process(target=_run, args=(cloudpickle.dumps(loop), *turn, sender, cluster), name=name)
        process.start()
        sender.close()
        receivers[receiver] = name
        processes.append(process)
    done: dict[str, Taken] = {}
    try:
        while waiting := [receiver for receiver, name in receivers.items() if name not in done]:
            for ready in wait(waiting):
                receiver = cast(Connection, ready)
                try:
                    taken: Taken = receiver.recv()
                except EOFError:
                    raise RuntimeError(f"the loop '{receivers[receiver]}' failed") from None
                done[receivers[receiver]] = Taken(taken.seconds[WARM_UP:], taken.waits[WARM_UP:])
    finally:
        for process in processes:
            process.kill()
            process.join()
    return {name: done[name] for name in loops}


def ratio(own: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long a step takes: the median over pairs."""
    return statistics.median(a / b for a, b in zip(own, others, strict=True))


def _run(loop: bytes, own: _Semaphore, following: _Semaphore, sender: Connection, cluster: dict[str, str]) -> None:
    os.environ |= {**_ALONE, "MASTER_PORT": str(free_ports(1)[0])}
    torch.set_num_threads(2)
    ray.init(**cluster, log_to_driver=False)  # type: ignore[arg-type]
    dist.init_process_group("gloo", rank=0, world_size=1)
    turn = Turn(own, following)
    cast(Loop, cloudpickle.loads(loop))(turn)
    turn.leave()
    sender.send(turn.taken)


def trainer_of(job: TrainJob) -> Loop:
    """A run, to be started in a process of its own."""
    return partial(train_in_turns, job)
