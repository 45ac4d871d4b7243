"""Starts a contrastive training run on Ray Train, or continues one."""

import json
from typing import Any

from ray.train.torch import TorchTrainer

from remembrandt.data.sources import open_source
from remembrandt.progress import say
from remembrandt.storage import open_store
from remembrandt.training.contrastive.config import TrainClipConfig
from remembrandt.training.contrastive.export import REPORT_FILE
from remembrandt.training.contrastive.loop import train_worker
from remembrandt.training.contrastive.teacher import check_teacher, read_phrases
from remembrandt.training.run import check_room, connect_for_training, fit, make_trainer


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
    connect_for_training()
    check_room(config.workers, gpu=config.gpu, setting="workers")
    fit(lambda: _make_trainer(config), config.max_failures)
    report: dict[str, Any] = json.loads(output.read(REPORT_FILE))
    return report


def _make_trainer(config: TrainClipConfig) -> TorchTrainer:
    filesystem, path = open_store(config.storage).arrow()
    return make_trainer(
        train_worker,
        config.model_dump(mode="json"),
        config.name,
        path,
        filesystem,
        workers=config.workers,
        gpu=config.gpu,
        keep=2,
    )
