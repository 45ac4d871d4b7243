"""What all noise schedules share: a picture and noise in proportion, and the two things that a network may predict.

Letters in names: B pictures, C H W.
"""

from abc import abstractmethod
from typing import Literal

import torch

Prediction = Literal["epsilon", "v"]
"""What a network predicts: the noise, or the velocity between noise and picture."""


class NoiseProcess:
    """x_t = α_t·x + σ_t·ε with α_t² + σ_t² = 1, over discrete or continuous t."""

    @abstractmethod
    def alpha_sigma(self, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α_t and σ_t, (B,) each."""

    def add_noise(self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        """q(x_t | x): α_t·x + σ_t·noise."""
        alpha, sigma = self._shaped(x_BCHW, t_B)
        return alpha * x_BCHW + sigma * noise_BCHW

    def target(
        self, x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, t_B: torch.Tensor, prediction: Prediction
    ) -> torch.Tensor:
        """What a network of that prediction should say: ε, or v = α_t·ε - σ_t·x (Salimans and Ho 2022)."""
        if prediction == "epsilon":
            return noise_BCHW
        alpha, sigma = self._shaped(x_BCHW, t_B)
        return alpha * noise_BCHW - sigma * x_BCHW

    def noise_of(
        self, x_BCHW: torch.Tensor, said_BCHW: torch.Tensor, t_B: torch.Tensor, prediction: Prediction
    ) -> torch.Tensor:
        """ε from what the network said about x_t."""
        if prediction == "epsilon":
            return said_BCHW
        alpha, sigma = self._shaped(x_BCHW, t_B)
        return sigma * x_BCHW + alpha * said_BCHW

    def _shaped(self, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, *[1] * (x_BCHW.ndim - 1))
        alpha_B, sigma_B = self.alpha_sigma(t_B)
        return alpha_B.to(x_BCHW.device).view(shape), sigma_B.to(x_BCHW.device).view(shape)
