"""The other half of CLIP's preprocessing, done where images are encoded.

Shapes: B batch, H W image, C channels.
"""

from collections.abc import Sequence

import torch


class PixelNormalisation(torch.nn.Module):
    """uint8 pixels (B, H, W, 3) → normalised floats (B, 3, H, W) in one batched operation on the encoder's device."""

    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """The result keeps channels last in memory, which convolutions prefer."""
        x_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().div(255)
        return x_BCHW.sub(self.mean_C11).div(self.std_C11)
