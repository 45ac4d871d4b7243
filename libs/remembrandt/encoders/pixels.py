"""The CPU half of CLIP's preprocessing, to be run where images are decoded. It needs no torch.

Shapes: H W image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


@dataclass(frozen=True)
class ClipPixelTransform:
    """Resize and crop to (height, width) exactly as open_clip's evaluation transform does it, up to uint8 pixels.

    Attributes:
        resize_mode: `shortest` (resize the shorter edge, crop the centre), `longest` (fit inside, pad with
            `fill_color`) or `squash` (ignore the aspect ratio).
        interpolation: `bilinear`; everything else is bicubic.
    """

    height: int
    width: int
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """PIL image → pixels (H, W, 3) uint8."""
        resampling, fill = self._resampling, 0
        if self.resize_mode == "squash":
            size = (self.width, self.height)
        elif self.resize_mode == "longest":
            size = self._scaled(image, max(image.height / self.height, image.width / self.width))
            fill = self.fill_color
        elif self.height == self.width:
            size = self._shorter_edge(image)
        else:
            # open_clip resizes with its bicubic default here, whatever interpolation the model asks for.
            size = self._scaled(image, min(image.height / self.height, image.width / self.width))
            resampling = Image.Resampling.BICUBIC
        resized = image if image.size == size else image.resize(size, resampling)
        return np.asarray(self._centre(resized, fill).convert("RGB"), dtype=np.uint8)

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC

    def _shorter_edge(self, image: Image.Image) -> tuple[int, int]:
        """The rule of torchvision: the longer edge is truncated, not rounded."""
        short, long = sorted(image.size)
        new_long = int(self.height * long / short)
        return (self.height, new_long) if image.width <= image.height else (new_long, self.height)

    @staticmethod
    def _scaled(image: Image.Image, ratio: float) -> tuple[int, int]:
        return round(image.width / ratio), round(image.height / ratio)

    def _centre(self, image: Image.Image, fill: int) -> Image.Image:
        missing_width, missing_height = max(self.width - image.width, 0), max(self.height - image.height, 0)
        if missing_width or missing_height:
            border = (missing_width // 2, missing_height // 2, (missing_width + 1) // 2, (missing_height + 1) // 2)
            image = ImageOps.expand(image, border, fill if image.mode == "L" else (fill,) * len(image.getbands()))
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))
