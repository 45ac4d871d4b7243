"""What a training job is to the loop: something that a worker can build an objective and a feed from."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from remembrandt.models.objective import Objective
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeding import Feed


class TrainJob(Protocol):
    """One training run, picklable: it travels to every worker.

    Attributes:
        name: of the run; the same name at the same storage goes on.
        storage: path or URI of checkpoints, figures and grids.
        output: path or URI of the finished model's folder.
        loop: the loop's configuration.
    """

    @property
    def name(self) -> str: ...

    @property
    def storage(self) -> str: ...

    @property
    def output(self) -> str: ...

    @property
    def loop(self) -> LoopConfig: ...

    def settings(self) -> Mapping[str, Any]:
        """The whole configuration as plain values; `model` and `loss` are what a resumed run may not change."""

    def build(self, device: torch.device) -> tuple[Objective, Feed]:
        """Called once in every worker."""
