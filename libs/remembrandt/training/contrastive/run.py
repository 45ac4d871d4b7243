"""Starts a contrastive training run on Ray Train, or continues one."""

import json
import os
from typing import Any

from ray.train import CheckpointConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from remembrandt.data.sources import open_source
from remembrandt.distributed import connect, plain_error
from remembrandt.errors import RemembrandtError
from remembrandt.progress import say
from remembrandt.storage import open_store
from remembrandt.training.contrastive.config import TrainClipConfig
from remembrandt.training.contrastive.export import REPORT_FILE
from remembrandt.training.contrastive.loop import train_worker
from remembrandt.training.contrastive.teacher import check_teacher, read_phrases


def train_clip(config: TrainClipConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Trains, or continues the run of that name at that storage, and returns the report of the finished model.

    A dry run checks sources, output and teacher, says what would be trained, and trains nothing.

    Raises:
        RemembrandtError: what a worker raised for the user, without Ray's wrapping.
        TrainingFailedError: workers were lost more than `max_failures` times.
    """
    output = open_store(config.output)
    output.check_writable()
    for source in config.data.sources:
        open_source(source)
    if config.distillation is not None:
        check_teacher(config.distillation.teacher)
        for phrases in config.distillation.phrases:
            read_phrases(phrases)
    if dry_run:
        say(f"would train {config.optimisation.steps} steps on {config.workers} worker(s) and write {config.output}")
        return {"dry_run": True, "output": config.output}
    # Workers' output comes here as it is; Ray Train's own copy of it would show every line twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    connect(show_workers=True)
    _fit(config)
    report: dict[str, Any] = json.loads(output.read(REPORT_FILE))
    return report


def _fit(config: TrainClipConfig) -> None:
    """Replaces lost workers up to `max_failures` times. Ray Train would do so after a user's mistake, too."""
    for failures in range(config.max_failures + 1):
        try:
            _make_trainer(config).fit()
            return
        except TrainingFailedError as error:
            mistake = _mistake_in(error)
            if mistake is not None:
                raise mistake from None
            if failures == config.max_failures:
                raise
            say(f"training failed ({_first_line(error)}): going on from the last checkpoint")


def _make_trainer(config: TrainClipConfig) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.gpu),
        run_config=RunConfig(  # type: ignore[call-arg]  # to a type checker Ray shows the classes of its first version
            name=config.name,
            storage_path=config.storage,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _mistake_in(error: TrainingFailedError) -> RemembrandtError | None:
    """What a worker raised for the user, if it did."""
    failures = [error, *getattr(error, "worker_failures", {}).values()]
    # Ray Train wraps what a training function raises without making it a cause.
    found = (plain_error(getattr(failure, "_base_exc", failure)) for failure in failures)
    return next((mistake for mistake in found if isinstance(mistake, RemembrandtError)), None)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
