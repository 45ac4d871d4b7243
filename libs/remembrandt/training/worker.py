"""What Ray Train runs in each worker: the loop, with checkpoints handed over to it."""

from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from remembrandt.allocation import keep_freed_memory
from remembrandt.distributed import cores_of_node
from remembrandt.training.job import TrainJob
from remembrandt.training.loop import Trainer


def train_worker(values: dict[str, Any]) -> None:
    """Ray Train's entry point; `values["job"]` is the TrainJob."""
    job: TrainJob = values["job"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(job.loop.threads or share_of_cores())
    torch.backends.cudnn.benchmark = True  # all steps have the same shapes
    objective, feed = job.build(device)
    try:
        trainer = Trainer(job, objective, feed, device, context.get_world_rank(), report_checkpoint)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                trainer.restore(Path(folder))
        trainer.run()
    finally:
        feed.close()


def share_of_cores() -> int:
    """CPU threads of this worker: the node's cores, divided among its workers. Ray would give each a single one."""
    return max(1, cores_of_node() // ray.train.get_context().get_local_world_size())


def report_checkpoint(folder: Path, step: int) -> None:
    """Hands a checkpoint to Ray Train: a barrier for all workers; the upload goes on beside the next steps."""
    ray.train.report(
        {"step": step},
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
