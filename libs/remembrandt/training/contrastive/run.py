"""Starts a contrastive training run on Ray Train, or continues one."""

import json
import os
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from remembrandt.data.sources import open_source
from remembrandt.distributed import connect, plain_error
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
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.gpu),
        run_config=RunConfig(
            name=config.name,
            storage_path=config.storage,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise plain_error(error) from error
    report: dict[str, Any] = json.loads(output.read(REPORT_FILE))
    return report
