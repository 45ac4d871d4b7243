"""The cosine schedule over continuous time t ∈ [0, 1], as Imagen and Re-Imagen use it, and its samplers.

Letters in names: B pictures, C H W.
"""

import math

import torch
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.diffusion.noise import STEPS, Seeds, seeded_normal
from remembrandt.diffusion.process import NoiseProcess


class CosineSchedule(Config, NoiseProcess):
    """α_t = cos(θ), σ_t = sin(θ), θ from nearly 0 to nearly π/2 (Nichol and Dhariwal 2021, in continuous time).

    Attributes:
        largest_log_snr: λ = 2·log(α/σ) runs from this to its negative. At the noisy end x̂_0 is an ε's error divided by
            α, so that a larger value costs precision and brings nothing that an eye would see.
    """

    largest_log_snr: float = Field(10.0, gt=0)

    def angle(self, t: torch.Tensor) -> torch.Tensor:
        """θ of t ∈ [0, 1]."""
        low = math.atan(math.exp(-0.5 * self.largest_log_snr))
        return low + t * (math.pi / 2 - 2 * low)

    def alpha_sigma(self, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos(θ) and sin(θ)."""
        angle_B = self.angle(t_B)
        return angle_B.cos(), angle_B.sin()


def threshold(clean_BCHW: torch.Tensor, quantile: float | None) -> torch.Tensor:
    """Keeps x̂_0 in [-1, 1] (Saharia et al. 2022, §2.3).

    Args:
        quantile: None clips; else *dynamic thresholding*: a picture whose |x̂_0| at this quantile exceeds 1 is clipped
            there and divided by it, so that large guidance weights do not saturate it.
    """
    if quantile is None:
        return clean_BCHW.clamp(-1, 1)
    reach_B = torch.quantile(clean_BCHW.flatten(1).abs().float(), quantile, dim=1).clamp(min=1)
    reach = reach_B.view(-1, *[1] * (clean_BCHW.ndim - 1))
    return torch.minimum(torch.maximum(clean_BCHW, -reach), reach) / reach


class ContinuousDdim:
    """DDIM, or with η = 1 ancestral sampling as in DDPM, over evenly spaced times."""

    def __init__(
        self, schedule: CosineSchedule, steps: int, eta: float, quantile: float | None, seeds_B: Seeds
    ) -> None:
        self.timesteps = [1 - i / steps for i in range(steps)]
        self._eta, self._quantile, self._seeds_B = eta, quantile, seeds_B
        angles = schedule.angle(torch.tensor([*self.timesteps, 0.0], dtype=torch.float64))
        self._alphas, self._sigmas = angles.cos().tolist(), angles.sin().tolist()

    def step(self, index: int, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x before step `index`, predicted ε) → (x after it, x̂_0)."""
        alpha, sigma = self._alphas[index], self._sigmas[index]
        next_alpha, next_sigma = self._alphas[index + 1], self._sigmas[index + 1]
        clean_BCHW = threshold((x_BCHW - sigma * noise_BCHW) / alpha, self._quantile)
        if index + 1 == len(self.timesteps):
            return clean_BCHW, clean_BCHW
        noise_BCHW = (x_BCHW - alpha * clean_BCHW) / sigma
        fresh = self._eta * next_sigma / sigma * math.sqrt(max(1 - (alpha / next_alpha) ** 2, 0.0))
        next_BCHW = next_alpha * clean_BCHW + math.sqrt(max(next_sigma**2 - fresh**2, 0.0)) * noise_BCHW
        if fresh > 0:
            drawn_BCHW = seeded_normal(self._seeds_B, x_BCHW.shape[1:], STEPS + index).to(x_BCHW.device)
            next_BCHW = next_BCHW + fresh * drawn_BCHW
        return next_BCHW, clean_BCHW


class ContinuousDpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2) over times evenly spaced in t; deterministic."""

    def __init__(self, schedule: CosineSchedule, steps: int, quantile: float | None) -> None:
        self.timesteps = [1 - i / steps for i in range(steps)]
        self._quantile = quantile
        angles = schedule.angle(torch.tensor([*self.timesteps, 0.0], dtype=torch.float64))
        self._alphas, self._sigmas = angles.cos().tolist(), angles.sin().tolist()
        self._lambdas = [math.log(a / s) for a, s in zip(self._alphas, self._sigmas, strict=True)]
        self._last_clean: torch.Tensor | None = None

    def step(self, index: int, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ContinuousDdim.step`; steps must come in order."""
        alphas, sigmas, lambdas = self._alphas, self._sigmas, self._lambdas
        clean_BCHW = threshold((x_BCHW - sigmas[index] * noise_BCHW) / alphas[index], self._quantile)
        if index + 1 == len(self.timesteps):
            return clean_BCHW, clean_BCHW
        h = lambdas[index + 1] - lambdas[index]
        aimed_BCHW = clean_BCHW
        if self._last_clean is not None:
            ratio = (lambdas[index] - lambdas[index - 1]) / h
            aimed_BCHW = clean_BCHW + (clean_BCHW - self._last_clean) / (2 * ratio)
        self._last_clean = clean_BCHW
        shrunk = sigmas[index + 1] / sigmas[index]
        return shrunk * x_BCHW - alphas[index + 1] * math.expm1(-h) * aimed_BCHW, clean_BCHW
