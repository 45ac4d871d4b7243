"""Pictures from tensors, and a grid of samples beside the neighbours that made them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

_GAP = 4
_PAPER = (246, 245, 241)


def to_images(pixels_BCHW: torch.Tensor) -> list[Image.Image]:
    """Pictures in [0, 1] → PIL."""
    return [Image.fromarray(pixels) for pixels in to_pixels(pixels_BCHW)]


def to_pixels(pixels_BCHW: torch.Tensor) -> list[NDArray[np.uint8]]:
    """(B, 3, H, W) in [0, 1] → B pictures (H, W, 3)."""
    arrays = (pixels_BCHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(array) for array in arrays]


def sample_grid(
    samples: Sequence[Image.Image], neighbors: Sequence[Sequence[Image.Image]], columns: int = 2
) -> Image.Image:
    """Each sample at the right of its neighbours, `columns` of these side by side."""
    edge = samples[0].height
    most = max((len(row) for row in neighbors), default=0)
    width = (most + 1) * (edge + _GAP) + _GAP * 3
    lines = (len(samples) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * width, lines * (edge + _GAP) + _GAP), _PAPER)
    for number, sample in enumerate(samples):
        left, top = number % columns * width + _GAP, number // columns * (edge + _GAP) + _GAP
        for place, neighbor in enumerate(neighbors[number] if neighbors else ()):
            sheet.paste(neighbor.convert("RGB").resize((edge, edge)), (left + place * (edge + _GAP), top))
        sheet.paste(sample, (left + most * (edge + _GAP) + _GAP, top))
    return sheet
