"""What becomes of a decoded image: the whole of it, or random patches as in P1 F.1.

Patches: the image is resized so that its shorter edge has `shorter_edge` pixels, then `per_image` crops of
`size` × `size` are drawn. A patch depends on the seed and the image's key alone, never on order or workers.
"""

import hashlib
import io
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from remembrandt.configuration import Config

Box = tuple[int, int, int, int]

_LANCZOS = Image.Resampling.LANCZOS
_BICUBIC = Image.Resampling.BICUBIC


class PatchConfig(Config):
    """How images become rows.

    Attributes:
        mode: `whole` keeps each image as one row; `patches` cuts crops.
        size: edge of a patch in pixels; P1 uses 256, with 64 and 128 as ablations.
        shorter_edge: pixels of the image's shorter edge before cropping (P1 F.1: 1200).
        per_image: least and most crops of an image; the number is drawn per image.
        seed: of the draws.
        max_edge: `whole` only: images with a longer edge are scaled down to it; None keeps every size.
        format: encoding of pictures that differ from their source file.
        quality: of WebP and JPEG, 1–100.
    """

    mode: Literal["whole", "patches"] = "whole"
    size: int = Field(256, ge=8)
    shorter_edge: int = Field(1200, ge=8)
    per_image: tuple[int, int] = (2, 3)
    seed: int = 0
    max_edge: int | None = Field(None, ge=8)
    format: Literal["webp", "jpeg", "png"] = "webp"
    quality: int = Field(90, ge=1, le=100)

    @model_validator(mode="after")
    def _check(self) -> "PatchConfig":
        if self.size > self.shorter_edge:
            raise ValueError(f"size {self.size} must not exceed shorter_edge {self.shorter_edge}")
        least, most = self.per_image
        if not 1 <= least <= most:
            raise ValueError("per_image must be [least, most] with 1 <= least <= most")
        return self


@dataclass(frozen=True)
class Patch:
    """One picture that becomes a row.

    Attributes:
        image: RGB.
        box: (left, top, right, bottom) in pixels of the decoded source image.
        index: number of the patch within its image, from 0.
        is_source: the picture is the decoded source itself, so that the row can keep the source's bytes.
    """

    image: Image.Image
    box: Box
    index: int
    is_source: bool = False


def cut_patches(image: Image.Image, key: str, config: PatchConfig) -> list[Patch]:
    """At least one patch of `image` (RGB), in a fixed order; pure, with draws seeded by (`config.seed`, `key`).

    An image whose shorter edge is below `config.size` gives one patch: its largest centred square, scaled up. Upscaling
    it to `shorter_edge` first would show a few blurred pixels.
    """
    if config.mode == "whole":
        return [_whole(image, config)]
    if min(image.size) < config.size:
        box = _centred_square(image.size)
        return [Patch(cut_box(image, box, config.size), box, 0)]
    boxes = patch_boxes(image.size, key, config)
    return [
        Patch(_resample(image, exact, config.size), _rounded(exact, image.size), i) for i, exact in enumerate(boxes)
    ]


def patch_boxes(size: tuple[int, int], key: str, config: PatchConfig) -> list[tuple[float, float, float, float]]:
    """Exact patch boxes in source pixels for an image of (width, height) `size`; pure."""
    width, height = size
    scale = config.shorter_edge / min(width, height)
    scaled_width, scaled_height = round(width * scale), round(height * scale)
    x_scale, y_scale = width / scaled_width, height / scaled_height
    draw = _draws(config.seed, key)
    least, most = config.per_image
    boxes = []
    for _ in range(least + int(draw.random() * (most - least + 1))):
        left = int(draw.random() * (scaled_width - config.size + 1))
        top = int(draw.random() * (scaled_height - config.size + 1))
        right, bottom = left + config.size, top + config.size
        boxes.append((left * x_scale, top * y_scale, min(right * x_scale, width), min(bottom * y_scale, height)))
    return list(dict.fromkeys(boxes))


def cut_box(image: Image.Image, box: Box, size: int) -> Image.Image:
    """The part of `image` inside `box` (source pixels), scaled to `size` × `size`: for sources that bring boxes."""
    return _resample(image, box, size)


def encode_patch(image: Image.Image, config: PatchConfig) -> bytes:
    """The picture as a file in the configured format."""
    buffer = io.BytesIO()
    if config.format == "png":
        image.save(buffer, "PNG")
    elif config.format == "jpeg":
        image.save(buffer, "JPEG", quality=config.quality)
    else:
        image.save(buffer, "WEBP", quality=config.quality, method=2)
    return buffer.getvalue()


def patch_bytes(patch: Patch, source: bytes, config: PatchConfig) -> bytes:
    """What a row stores: the source file as it is if the patch is the source, else the patch encoded."""
    return source if patch.is_source else encode_patch(patch.image, config)


def _whole(image: Image.Image, config: PatchConfig) -> Patch:
    width, height = image.size
    box = (0, 0, width, height)
    if config.max_edge is None or max(width, height) <= config.max_edge:
        return Patch(image, box, 0, is_source=True)
    scale = config.max_edge / max(width, height)
    smaller = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), _LANCZOS, reducing_gap=3.0)
    return Patch(smaller, box, 0)


def _resample(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """Same pixels as resizing the whole image and cropping, at the cost of the crop alone."""
    return image.resize((size, size), _BICUBIC, box=box)


def _centred_square(size: tuple[int, int]) -> Box:
    width, height = size
    edge = min(size)
    left, top = (width - edge) // 2, (height - edge) // 2
    return left, top, left + edge, top + edge


def _rounded(box: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    left, top, right, bottom = (round(edge) for edge in box)
    return left, top, min(max(right, left + 1), size[0]), min(max(bottom, top + 1), size[1])


def _draws(seed: int, key: str) -> random.Random:
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))
