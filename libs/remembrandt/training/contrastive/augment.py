"""Augmentation of a whole batch at once, on the training device.

Shapes: B batch, C channels, H W image; S is the larger stored size.
"""

import math

import torch
import torch.nn.functional as F

from remembrandt.training.contrastive.config import AugmentationConfig

_WHITE = 0.97


def augment(
    pixels_BSSC: torch.Tensor, height: int, width: int, config: AugmentationConfig, generator: torch.Generator
) -> torch.Tensor:
    """uint8 (B, S, S, 3) → varied float images (B, 3, height, width) in [0, 1].

    What a crop shows beyond the image is white, as the images' own background is.
    """
    x_BCSS = pixels_BSSC.permute(0, 3, 1, 2).float().div(255)
    if config.background:
        x_BCSS = _recolour_background(x_BCSS, config.background, generator)
    theta_B23 = _placements(len(x_BCSS), config, generator)
    grid = F.affine_grid(theta_B23, [len(x_BCSS), 3, height, width], align_corners=False)
    # Padding is zero, so images are sampled as their distance from white.
    x_BCHW = 1 - F.grid_sample(1 - x_BCSS, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x_BCHW = _vary_colours(x_BCHW, config, generator)
    if config.outline:
        x_BCHW = _outline(x_BCHW, config.outline, generator)
    return _erase(x_BCHW, config.erase, generator).clamp_(0, 1)


def _uniform(size: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def _placements(size: int, config: AugmentationConfig, generator: torch.Generator) -> torch.Tensor:
    """Affine maps (B, 2, 3) from the crop to the image: zoom, aspect, rotation, mirror, shift."""
    zoom = _uniform(size, *config.zoom, generator)
    stretch = torch.exp(_uniform(size, -config.aspect, config.aspect, generator) / 2)
    angle = _uniform(size, -config.rotate, config.rotate, generator) * math.pi / 180
    mirror = torch.where(torch.rand(size, generator=generator) < config.flip, -1.0, 1.0)
    scale_x, scale_y = zoom * stretch, zoom / stretch
    room = (1 - zoom).abs().clamp(min=0.06)
    shift_x, shift_y = (room * _uniform(size, -1, 1, generator) for _ in range(2))
    rows = [
        torch.stack([scale_x * angle.cos() * mirror, -scale_y * angle.sin(), shift_x], dim=1),
        torch.stack([scale_x * angle.sin() * mirror, scale_y * angle.cos(), shift_y], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _vary_colours(x_BCHW: torch.Tensor, config: AugmentationConfig, generator: torch.Generator) -> torch.Tensor:
    """Hue rotation about the grey axis, saturation, contrast and brightness as one 3×3 matrix and an offset."""
    size = len(x_BCHW)
    angle = _uniform(size, -config.hue, config.hue, generator) * math.pi / 180
    saturation = 1 + _uniform(size, -config.saturation, config.saturation, generator)
    saturation = torch.where(torch.rand(size, generator=generator) < config.grey, torch.zeros(()), saturation)
    contrast = 1 + _uniform(size, -config.contrast, config.contrast, generator)
    brightness = _uniform(size, -config.brightness, config.brightness, generator)
    grey_CC = torch.full((3, 3), 1 / 3)
    cross_CC = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    colour_BCC = cos * (torch.eye(3) - grey_CC) + sin * cross_CC
    matrix_BCC = contrast.view(-1, 1, 1) * (grey_CC + saturation.view(-1, 1, 1) * colour_BCC)
    # Contrast turns about white, so that a white background stays white; brightness then scales everything.
    offset_BC = 1 - matrix_BCC.sum(dim=2)
    gain = (1 + brightness.clamp(max=0)).view(-1, 1, 1, 1)
    lift = brightness.clamp(min=0).view(-1, 1, 1, 1)
    x_BCHW = torch.einsum("bij,bjhw->bihw", matrix_BCC, x_BCHW) + offset_BC[:, :, None, None]
    return x_BCHW * gain + (1 - x_BCHW) * lift


def _recolour_background(x_BCSS: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Replaces the white that is connected with an image's border by a plain colour, for some of the images."""
    size = len(x_BCSS)
    chosen = torch.rand(size, generator=generator) < probability
    colours_BC11 = torch.rand(size, 3, 1, 1, generator=generator)
    if not chosen.any():
        return x_BCSS
    x = x_BCSS[chosen]
    mask = _outer_white(x)
    x_BCSS = x_BCSS.clone()
    x_BCSS[chosen] = x * (1 - mask) + colours_BC11[chosen] * mask
    return x_BCSS


def _outer_white(x_BCSS: torch.Tensor) -> torch.Tensor:
    """(B, 1, S, S) mask of the white that is seen from outside along a row or a column: no wall in between."""
    wall = (x_BCSS.amin(dim=1, keepdim=True) < _WHITE).float()
    seen = torch.ones_like(wall)
    for axis in (2, 3):
        left = wall.cumsum(dim=axis)
        right = wall.flip(axis).cumsum(dim=axis).flip(axis)
        seen = seen * torch.minimum(left, right)
    return (seen == 0).float()


def _outline(x_BCHW: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Inks the edges of some of the images, as artists who draw contours do; a third of these become line drawings."""
    size = len(x_BCHW)
    chosen = torch.rand(size, generator=generator) < probability
    lines_only_B = torch.rand(size, generator=generator) < 1 / 3
    strength_B = _uniform(size, 1.5, 5.0, generator)
    if not chosen.any():
        return x_BCHW
    x = x_BCHW[chosen]
    grey = x.mean(dim=1, keepdim=True)
    # The range of grey within three pixels: dilation minus erosion.
    edges = F.max_pool2d(grey, 3, stride=1, padding=1) + F.max_pool2d(-grey, 3, stride=1, padding=1)
    ink = (edges * strength_B[chosen].view(-1, 1, 1, 1)).clamp(0, 1)
    paper = torch.where(lines_only_B[chosen].view(-1, 1, 1, 1), torch.ones(()), x)
    x_BCHW = x_BCHW.clone()
    x_BCHW[chosen] = paper * (1 - ink)
    return x_BCHW


def _erase(x_BCHW: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Blots out a rectangle of up to half an edge with a plain colour, for some of the images."""
    size, _, height, width = x_BCHW.shape
    chosen = (torch.rand(size, generator=generator) < probability).view(-1, 1, 1, 1)
    colours = torch.rand(size, 3, 1, 1, generator=generator)
    half_h, half_w = (_uniform(size, 0.05, 0.25, generator).view(-1, 1, 1, 1) for _ in range(2))
    top, left = (torch.rand(size, 1, 1, 1, generator=generator) for _ in range(2))
    rows = torch.linspace(0, 1, height).view(1, 1, -1, 1)
    columns = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    inside = ((rows - top).abs() < half_h) & ((columns - left).abs() < half_w) & chosen
    return torch.where(inside, colours, x_BCHW)
