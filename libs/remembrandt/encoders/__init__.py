"""Frozen networks that turn images and texts into embeddings.

Names load on first use: a decoding worker unpickles a pixel transform without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remembrandt.encoders.base import Fingerprint, ImageTextEncoder, PixelTransform, normalise
    from remembrandt.encoders.clip import ClipEncoder, fingerprint_of, open_encoder, pixel_transform_of
    from remembrandt.encoders.config import EncoderConfig

__all__ = [
    "ClipEncoder",
    "EncoderConfig",
    "Fingerprint",
    "ImageTextEncoder",
    "PixelTransform",
    "fingerprint_of",
    "normalise",
    "open_encoder",
    "pixel_transform_of",
]

_HOMES = {
    "base": ("Fingerprint", "ImageTextEncoder", "PixelTransform", "normalise"),
    "clip": ("ClipEncoder", "fingerprint_of", "open_encoder", "pixel_transform_of"),
    "config": ("EncoderConfig",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
