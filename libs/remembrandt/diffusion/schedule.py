"""Noise schedules of discrete time t = 0 … T - 1: how much of the picture is left at each step.

Letters in names: B pictures, C H W, T timesteps.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from remembrandt.configuration import Config
from remembrandt.diffusion.process import NoiseProcess, Prediction

Kind = Literal["linear", "cosine"]


class ScheduleConfig(Config):
    """Which schedule.

    Attributes:
        kind: `linear` as in the latent diffusion code base that P1 trains with, where √β is linear (diffusers calls
            that `scaled_linear`); `cosine` of Nichol and Dhariwal (2021).
        beta_start, beta_end: of the linear schedule.
        num_train_timesteps: T.
    """

    kind: Kind = "linear"
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    num_train_timesteps: int = 1000

    def build(self) -> "NoiseSchedule":
        """The schedule's numbers."""
        return NoiseSchedule(self)


@dataclass(frozen=True)
class NoiseSchedule(NoiseProcess):
    """ᾱ_t of every timestep."""

    config: ScheduleConfig

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.config.num_train_timesteps

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t, float32 (T,), falling from nearly 1 to nearly 0; the same numbers as in diffusers' schedulers."""
        return torch.cumprod(1 - self._betas(), dim=0)

    def diffusers_config(self, prediction: Prediction = "epsilon") -> dict[str, Any]:
        """What a diffusers scheduler must be told to do the same: LDM's samplers count timesteps from 1, end at ᾱ_0."""
        return {
            "num_train_timesteps": self.num_timesteps,
            "beta_start": self.config.beta_start,
            "beta_end": self.config.beta_end,
            "beta_schedule": {"linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}[self.config.kind],
            "steps_offset": 1,
            "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction],
        }

    def alpha_sigma(self, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t)."""
        kept_B = self.alphas_cumprod.to(t_B.device)[t_B]
        return kept_B.sqrt(), (1 - kept_B).sqrt()

    def _betas(self) -> torch.Tensor:
        config, count = self.config, self.num_timesteps
        if config.kind == "linear":
            return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, count, dtype=torch.float32) ** 2
        kept = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return torch.tensor([min(1 - kept[i + 1] / kept[i], 0.999) for i in range(count)], dtype=torch.float32)
