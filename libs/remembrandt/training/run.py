"""Starts a training run on Ray Train, or goes on with one."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from pyarrow.fs import FileSystem
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import TrainingFailedError

from remembrandt.allocation import OWN_ARENAS
from remembrandt.distributed import connect, plain_error
from remembrandt.errors import ConfigError, RemembrandtError
from remembrandt.progress import say
from remembrandt.storage import open_store
from remembrandt.training.job import TrainJob
from remembrandt.training.output import REPORT
from remembrandt.training.worker import train_worker

_ROOM_SECONDS = 5.0
"""Ray takes a moment to count what has ended as free."""


def train(job: TrainJob) -> dict[str, Any]:
    """Trains, or goes on with the run of that name at that storage; returns the finished model's report.

    Raises:
        ConfigError: more workers than this machine has room for.
        RemembrandtError: what a worker raised for the user, without Ray's wrapping.
        TrainingFailedError: workers were lost more than `max_failures` times.
    """
    loop = job.loop
    output = open_store(job.output)
    output.check_writable()
    open_store(job.storage).check_writable()
    connect_for_training()
    check_room(loop.workers, gpu=loop.gpu)
    filesystem, path = open_store(job.storage).arrow()
    fit(
        lambda: make_trainer(
            train_worker,
            {"job": job},
            job.name,
            path,
            filesystem,
            workers=loop.workers,
            gpu=loop.gpu,
            keep=loop.keep,
        ),
        loop.max_failures,
    )
    report: dict[str, Any] = json.loads(output.read(REPORT))
    return report


def connect_for_training() -> None:
    """Joins the cluster so that the workers' own lines appear here once: Ray Train would show each of them twice."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    connect(show_workers=True, dashboard=True)


def check_room(workers: int, *, gpu: bool, setting: str = "loop.workers") -> None:
    """Whether all workers can start now. A cluster may grow, and is waited for; this machine's own instance does not.

    Raises:
        ConfigError: they never can.
    """
    kind = "GPU" if gpu else "CPU"
    deadline = time.monotonic() + _ROOM_SECONDS
    while (free := ray.available_resources().get(kind, 0.0)) < workers:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    else:
        return
    total = ray.cluster_resources().get(kind, 0.0)
    found = f"{setting} = {workers} needs {workers} {kind}s, and of the {total:g} that Ray has, {free:.3g} are free"
    if os.environ.get("RAY_ADDRESS"):
        say(f"{found}: waiting until there are enough")
        return
    more = "" if gpu else ", or let Ray count with more: REMEMBRANDT_RAY_CPUS"
    raise ConfigError(f"{found}: use fewer workers{more}")


def fit(make: Callable[[], TorchTrainer], max_failures: int) -> None:
    """Replaces lost workers up to `max_failures` times. Ray Train would do so after a user's mistake, too.

    A failure that comes again in the same words is not chance: it ends the run. Having no room yet is no failure.
    """
    failures, before = 0, ""
    while True:
        try:
            make().fit()
            return
        except TrainingFailedError as error:
            cause = getattr(error, "controller_failure", None)
            if isinstance(cause, WorkerGroupStartupTimeoutError):
                say(f"no room for {cause.num_workers} workers: waiting until there is")
                continue
            mistake = _mistake_in(error)
            if mistake is not None:
                raise mistake from None
            said = _first_line(error)
            if failures == max_failures or said == before:
                raise
            failures, before = failures + 1, said if not _is_loss(error) else ""
            say(f"training failed ({said}): going on from the last checkpoint")


def make_trainer(
    worker: Callable[[dict[str, Any]], None],
    values: Mapping[str, Any],
    name: str,
    path: str,
    filesystem: FileSystem,
    *,
    workers: int,
    gpu: bool,
    keep: int,
) -> TorchTrainer:
    """A trainer whose every worker calls `worker(values)`; the same name and storage go on from the last checkpoint.

    It retries nothing and logs to Ray's files alone: `fit` does the one, and says the other in a line.
    """
    return TorchTrainer(
        _without_chatter(worker),
        train_loop_config=dict(values),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(  # type: ignore[call-arg]  # to a type checker Ray shows the classes of its first version
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            failure_config=FailureConfig(controller_failure_limit=0),  # type: ignore[call-arg]
            logging_config=LoggingConfig(log_level="CRITICAL"),
            worker_runtime_env={"env_vars": OWN_ARENAS},
        ),
    )


def _without_chatter(worker: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Ray Train shows what every library logs as INFO; its own line for each report is none of its logger's."""

    def run(values: dict[str, Any]) -> None:
        logging.getLogger().setLevel(logging.WARNING)
        worker(values)

    return run


def _mistake_in(error: TrainingFailedError) -> RemembrandtError | None:
    """What a worker raised for the user, if it did."""
    failures = [error, *getattr(error, "worker_failures", {}).values()]
    # Ray Train wraps what a training function raises without making it a cause.
    found = (plain_error(getattr(failure, "_base_exc", failure)) for failure in failures)
    return next((mistake for mistake in found if isinstance(mistake, RemembrandtError)), None)


def _is_loss(error: TrainingFailedError) -> bool:
    """Whether a worker's process is gone, rather than that it raised something."""
    return any(isinstance(failure, RayError) for failure in getattr(error, "worker_failures", {}).values())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
