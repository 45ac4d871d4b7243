"""What a model hands to the training loop. The loop knows no model, and a model knows no loop.

Letters in names: B examples, C H W image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Tensors = dict[str, torch.Tensor]
"""A batch, or a part of one: names end with the letters of their shape (`latents_BCHW`), the first is always B."""


@dataclass(frozen=True)
class Losses:
    """What one pass over a batch found.

    Attributes:
        per_example_B: float32 (B,); the mean over the global batch is what is minimised and logged as `loss`.
        groups_B: int64 (B,) or None: the loss is also logged by group, named by `Objective.group_names`
            (for diffusion, the quartile of the timestep).
        logs: further figures, each (B,); their means are logged.
    """

    per_example_B: torch.Tensor
    groups_B: torch.Tensor | None = None
    logs: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One model's part of training.

    What an example draws at random (timestep, noise, crops) depends on its seed alone, so that a loss does not depend
    on the batch, the number of workers, or on where a run was interrupted.
    """

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups in `Losses.groups_B`."""

    def configure_model(self) -> nn.Module:
        """The network to be trained, initialised from torch's default generator, on the default device."""

    def prepare(self, batch: Tensors, seeds_B: NDArray[np.int64]) -> Tensors:
        """Adds what is drawn at random. Runs on the CPU, ahead of the step, in a thread.

        Args:
            seeds_B: one an example, different in every epoch.
        """

    def loss(self, model: nn.Module, batch: Tensors) -> Losses:
        """The loss of a prepared batch on the model's device. Calls `model` itself (it may be wrapped)."""

    def sample(self, model: nn.Module, batch: Tensors, seeds_B: NDArray[np.int64]) -> torch.Tensor:
        """Pictures for the log: (B, 3, H, W) float32 in [0, 1], conditioned on what is in the batch."""

    def load(self, model: nn.Module, folder: Path) -> None:
        """Takes over the weights of a finished model's folder.

        Raises:
            ConfigError: no such model there, or one of another shape.
        """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the weights as safetensors in diffusers' folder layout, with all that sampling needs to know."""


class AdversarialObjective(Objective, Protocol):
    """An objective that trains a critic beside its model, in turns within one step (a patch discriminator)."""

    def configure_critic(self) -> nn.Module | None:
        """The critic, or None to train without one."""

    def critic_learns(self, step: int) -> bool:
        """Whether the critic is trained in this step."""

    def adversarial_loss(self, model: nn.Module, critic: nn.Module, batch: Tensors, step: int) -> Losses:
        """Replaces `loss` while there is a critic; its parameters get no gradient from it."""

    def critic_loss(self, model: nn.Module, critic: nn.Module, batch: Tensors) -> Losses:
        """The critic's own loss; the model's parameters get no gradient from it."""
