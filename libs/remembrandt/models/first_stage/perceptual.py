"""Perceptual distances that need no training of ours.

Letters in names: B pictures, C H W.
"""

import contextlib
import io
import warnings
from typing import Any, cast

import torch
from torch import nn

from remembrandt.errors import ConfigError, ServiceError

_MIN_EDGE = 64


class Perceptual(nn.Module):
    """Distance of two pictures as people see it; frozen.

    Args:
        network: `st-lpips` (shift-tolerant LPIPS of Ghildyal and Liu 2022, weights in the package stlpips-pytorch) or
            `lpips` on torchvision's VGG16, whose weights are fetched at first use.

    Raises:
        ConfigError: stlpips-pytorch is not installed.
        ServiceError: the VGG weights cannot be fetched.
    """

    def __init__(self, network: str) -> None:
        super().__init__()
        self._network = _shift_tolerant() if network == "st-lpips" else VggDistance()
        self.eval().requires_grad_(False)

    def forward(self, a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] → distance (B,) float32."""
        edge = min(a_BCHW.shape[-2:])
        if edge < _MIN_EDGE:
            factor = _MIN_EDGE / edge
            a_BCHW, b_BCHW = (
                nn.functional.interpolate(x, scale_factor=factor, mode="bilinear") for x in (a_BCHW, b_BCHW)
            )
        distance = self._network(a_BCHW * 2 - 1, b_BCHW * 2 - 1)
        return cast(torch.Tensor, distance.float().flatten(1).mean(dim=1))

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in evaluation mode."""
        return super().train(False)


class VggDistance(nn.Module):
    """Mean squared difference of normalised VGG16 features at five depths, without LPIPS's learned weights."""

    _DEPTHS = (3, 8, 15, 22, 29)

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import VGG16_Weights, vgg16

        try:
            self.layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features
        except OSError as error:
            raise ServiceError(
                f"VGG16's weights cannot be fetched ({error}): set perceptual_network to st-lpips"
            ) from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1] → distance (B, 1)."""
        mean, std = cast(torch.Tensor, self.mean), cast(torch.Tensor, self.std)
        both = ((torch.cat([a_BCHW, b_BCHW]) / 2 + 0.5) - mean) / std
        total = torch.zeros(len(a_BCHW), device=both.device)
        for depth, layer in enumerate(self.layers):
            both = layer(both)
            if depth in self._DEPTHS:
                a, b = nn.functional.normalize(both, dim=1).chunk(2)
                total = total + (a - b).square().sum(dim=1).flatten(1).mean(dim=1)
        return total[:, None]


def _shift_tolerant() -> nn.Module:
    try:
        # It prints, and it warns about what torch does with its old pickles.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from stlpips_pytorch.stlpips import LPIPS

            network: Any = LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    except ImportError as error:
        raise ConfigError(
            f"st-lpips needs the package stlpips-pytorch ({error}): pip install 'remembrandt[train]', or perceptual: 0"
        ) from error
    return cast(nn.Module, network)
