"""Samplers: from noise to a sample, many pictures at once, each with its own solver, step count, η and seed.

Pictures of equal settings form a group that is advanced by one solver. The network sees all groups in one batch; a
group with fewer steps leaves early.

Letters in names: B pictures, C H W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.diffusion.continuous import ContinuousDdim, ContinuousDpmSolver, CosineSchedule
from remembrandt.diffusion.noise import STEPS, Seeds, seeded_normal
from remembrandt.diffusion.schedule import NoiseSchedule
from remembrandt.errors import ConfigError

Schedule = NoiseSchedule | CosineSchedule
SolverName = Literal["ddim", "dpm_solver++", "unipc"]


class SamplerConfig(Config):
    """How one picture is sampled.

    Attributes:
        solver: `ddim` (P1: 100 steps, η = 1), or one of diffusers' faster ODE solvers.
        num_inference_steps: network evaluations.
        eta: η of DDIM: 0 deterministic, 1 as stochastic as DDPM; without effect on the others.
        dynamic_threshold: quantile of dynamic thresholding, for models of pixels only; None clips their pixels.
    """

    solver: SolverName = "ddim"
    num_inference_steps: int = 100
    eta: float = Field(1.0, ge=0, le=1)
    dynamic_threshold: float | None = Field(None, gt=0, le=1)


Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_BCHW, timesteps_B, rows) → ε, once a step in order; `rows` are these pictures' positions in the whole request."""
OnStep = Callable[[int, int, torch.Tensor], None]
"""Told after every step: steps done, steps in all, x̂_0 of all pictures as predicted now."""


class Solver(Protocol):
    """Advances pictures of equal settings.

    Attributes:
        timesteps: when the network is asked: 0 … T - 1 of a discrete schedule, [0, 1] of a continuous one.
    """

    @property
    def timesteps(self) -> Sequence[float]: ...

    def step(self, index: int, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x before step `index`, predicted ε) → (x after it, x̂_0)."""


def sample(
    predict: Predict,
    schedule: Schedule,
    settings_B: Sequence[SamplerConfig],
    seeds_B: Seeds,
    shape: tuple[int, int, int],
    device: torch.device,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Draws B samples (B, C, H, W) float32; picture b depends on its own seed, settings and context alone.

    Raises:
        ConfigError: more steps than the schedule has, or none.
    """
    start_BCHW = seeded_normal(seeds_B, shape).to(device)
    groups = [
        _Group(rows, make_solver(settings, schedule, [seeds_B[row] for row in rows]), start_BCHW[rows])
        for settings, rows in _group_rows(settings_B).items()
    ]
    total = max((len(group.solver.timesteps) for group in groups), default=0)
    clean_BCHW = torch.zeros_like(start_BCHW)
    for index in range(total):
        active = [group for group in groups if index < len(group.solver.timesteps)]
        rows = torch.tensor([row for group in active for row in group.rows], device=device)
        timesteps = [group.solver.timesteps[index] for group in active for _ in group.rows]
        noise = predict(
            torch.cat([group.x_BCHW for group in active]), torch.tensor(timesteps, device=device), rows
        ).float()
        for group, part in zip(active, noise.split([len(group.rows) for group in active]), strict=True):
            group.x_BCHW, clean_BCHW[group.rows] = group.solver.step(index, group.x_BCHW, part)
        if on_step is not None:
            on_step(index + 1, total, clean_BCHW)
    out_BCHW = torch.empty_like(start_BCHW)
    for group in groups:
        out_BCHW[group.rows] = group.x_BCHW
    return out_BCHW


_FEW_STEPS = 10
_NOISY_END = 0.9


def make_solver(settings: SamplerConfig, schedule: Schedule, seeds_B: Seeds) -> Solver:
    """The solver of a group.

    Raises:
        ConfigError: settings that the schedule cannot have.
    """
    if isinstance(schedule, CosineSchedule):
        return _continuous_solver(settings, schedule, seeds_B)
    if settings.dynamic_threshold is not None:
        raise ConfigError("dynamic_threshold is for models of pixels: leave it out for a model of latents")
    # diffusers lays T steps on the T - 1 timesteps above 0: two fall together, and what lies between is divided by.
    most = schedule.num_timesteps - (settings.solver != "ddim")
    if not 1 <= settings.num_inference_steps <= most:
        raise ConfigError(
            f"num_inference_steps {settings.num_inference_steps} is not possible: the model was trained with "
            f"{schedule.num_timesteps} timesteps, so ask {settings.solver} for 1 to {most}"
        )
    if settings.solver == "ddim":
        return Ddim(settings, schedule, seeds_B)
    return DiffusersSolver(settings, schedule)


def _continuous_solver(settings: SamplerConfig, schedule: CosineSchedule, seeds_B: Seeds) -> Solver:
    steps, quantile = settings.num_inference_steps, settings.dynamic_threshold
    if steps < 1:
        raise ConfigError(f"num_inference_steps {steps} is not possible: ask for at least 1")
    if settings.solver == "ddim":
        return ContinuousDdim(schedule, steps, settings.eta, quantile, seeds_B)
    if settings.solver == "dpm_solver++":
        return ContinuousDpmSolver(schedule, steps, quantile)
    raise ConfigError(f"solver '{settings.solver}' knows no continuous time: use ddim or dpm_solver++")


class Ddim:
    """DDIM (Song et al. 2021, Eq. 12) with the timesteps of the latent diffusion code base, which P1 uses."""

    def __init__(self, settings: SamplerConfig, schedule: NoiseSchedule, seeds_B: Seeds) -> None:
        self._eta, self._seeds_B = settings.eta, seeds_B
        steps, total = settings.num_inference_steps, schedule.num_timesteps
        stride = total // steps
        leading = [i * stride + 1 for i in reversed(range(steps))]
        self.timesteps = leading if _spans(leading[0], steps, total) else _evenly(steps, total)
        self._kept_T = schedule.alphas_cumprod

    def step(self, index: int, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the protocol says."""
        kept = self._kept_T[self.timesteps[index]]
        next_kept = self._kept_T[self.timesteps[index + 1] if index + 1 < len(self.timesteps) else 0]
        variance = (1 - next_kept) / (1 - kept) * (1 - kept / next_kept)
        sigma = self._eta * variance**0.5
        clean_BCHW = (x_BCHW - float((1 - kept) ** 0.5) * noise_BCHW) / float(kept**0.5)
        direction_BCHW = float((1 - next_kept - sigma**2).clamp(min=0) ** 0.5) * noise_BCHW
        next_BCHW = float(next_kept**0.5) * clean_BCHW + direction_BCHW
        if self._eta > 0:
            fresh_BCHW = seeded_normal(self._seeds_B, x_BCHW.shape[1:], STEPS + index).to(x_BCHW.device)
            next_BCHW = next_BCHW + float(sigma) * fresh_BCHW
        return next_BCHW, clean_BCHW


class DiffusersSolver:
    """DPM-Solver++ or UniPC of diffusers, second order, deterministic."""

    def __init__(self, settings: SamplerConfig, schedule: NoiseSchedule) -> None:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        kind: Any = {"dpm_solver++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[settings.solver]
        steps, total = settings.num_inference_steps, schedule.num_timesteps
        first = steps * (total // (steps + 1)) + 1
        spacing = "leading" if _spans(first, steps, total) else "linspace"
        self._scheduler: Any = kind(
            **schedule.diffusers_config(), solver_order=2, timestep_spacing=spacing, lower_order_final=True
        )
        self._scheduler.set_timesteps(steps)
        self.timesteps = [int(t) for t in self._scheduler.timesteps]
        self._kept_T = schedule.alphas_cumprod

    def step(self, index: int, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the protocol says."""
        t = self.timesteps[index]
        kept = float(self._kept_T[t])
        clean_BCHW = (x_BCHW - (1 - kept) ** 0.5 * noise_BCHW) / kept**0.5
        next_BCHW = self._scheduler.step(noise_BCHW, self._scheduler.timesteps[index], x_BCHW, return_dict=False)[0]
        return next_BCHW, clean_BCHW


def _spans(first: int, steps: int, total: int) -> bool:
    """Whether timesteps of the latent diffusion code base begin where the noise does.

    Theirs are multiples of T // steps: for many steps that leaves out much of the noisy end, or goes beyond it.
    """
    return first < total and (steps < _FEW_STEPS or first >= _NOISY_END * total)


def _evenly(steps: int, total: int) -> list[int]:
    """Over the whole schedule."""
    return [int(t) for t in np.linspace(total - 1, 0, steps).round()]


@dataclass
class _Group:
    """Pictures of equal settings, on their way."""

    rows: list[int]
    solver: Solver
    x_BCHW: torch.Tensor


def _group_rows(settings_B: Sequence[SamplerConfig]) -> dict[SamplerConfig, list[int]]:
    groups: dict[SamplerConfig, list[int]] = {}
    for row, settings in enumerate(settings_B):
        groups.setdefault(settings, []).append(row)
    return groups
