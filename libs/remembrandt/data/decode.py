"""Encoded image → RGB pixels, for files that nobody has checked.

Formats are recognised by content and never by name. Whatever the bytes hold, the only exception is `DecodeError`.
ICC profiles are not applied, as CLIP's own preprocessing does not apply them. JPEG's draft mode is not used: it scales
in the DCT domain, which gives other pixels than decoding and resizing.
"""

import ctypes
import io
import logging
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging
from pydantic import Field, field_validator

from remembrandt.configuration import Config
from remembrandt.errors import RemembrandtError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Damaged metadata makes Pillow warn and log on every such file; what matters comes out as DecodeError.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_SIGNATURES = (
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x01\x00", "an icon file"),
    (0, b"8BPS", "a Photoshop file"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
)


class DecodeError(RemembrandtError):
    """Bytes that give no usable image; the message is a short reason."""


class DecodeConfig(Config):
    """What decoding accepts.

    Attributes:
        max_pixels: images with more pixels (width × height) are refused before any pixel is decoded.
        formats: accepted formats, out of JPEG, PNG, WEBP, GIF, BMP and TIFF.
    """

    max_pixels: int = Field(default=100_000_000, ge=1)
    formats: tuple[str, ...] = FORMATS

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        upper = tuple(name.upper() for name in formats)
        unknown = sorted(set(upper) - set(FORMATS))
        if unknown or not upper:
            raise ValueError(f"choose from {', '.join(FORMATS)}")
        return upper


DEFAULT_DECODE = DecodeConfig()


def decode_image(data: bytes, config: DecodeConfig = DEFAULT_DECODE) -> Image.Image:
    """Decodes an image: RGB, rotated as its EXIF orientation says, transparency over white, first frame if animated.

    16-bit grey keeps its high byte; 32-bit and float grey are stretched to 0–255 unless their values lie there
    already. Thread-safe.

    Raises:
        DecodeError: not an image, a format that is not accepted, too many pixels, truncated, corrupt.
    """
    try:
        image = _open(data, config)
        _check_size(image.size, config)
        image.load()
        _check_size(image.size, config)
        upright = _upright(image)
        result = _to_rgb(upright)
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError("needs more memory than there is") from None
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise DecodeError(_reason(error)) from error
    result.info = {}
    return result


def image_size(data: bytes, config: DecodeConfig = DEFAULT_DECODE) -> tuple[int, int]:
    """Width and height of the decoded image, from the header alone.

    Raises:
        DecodeError: no header of an accepted image.
    """
    try:
        image = _open(data, config)
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)  # TIFF's plugin has turned the size
    except DecodeError:
        raise
    except Exception as error:  # as above
        raise DecodeError(_reason(error)) from error
    return (height, width) if turned else (width, height)


def _open(data: bytes, config: DecodeConfig) -> Image.Image:
    """Reads the header with the one plugin that recognises the content.

    The plugin is called directly: `Image.open` would warn at, and refuse above, Pillow's own process-wide limits.
    """
    _initialise()
    if not data:
        raise DecodeError("the file is empty")
    prefix = data[:16]
    for name in config.formats:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is True:
            image = factory(io.BytesIO(data), "")
            if image is None:
                raise UnidentifiedImageError
            return image
    raise DecodeError(f"not an image: {_looks_like(data)}")


@cache
def _initialise() -> None:
    """Registers all plugins, and stops libtiff from printing what also comes out as an exception.

    libtiff writes to the file descriptor, past Python. Looking its function up in Pillow's extension module finds the
    copy that Pillow is linked with; a build that hides the symbol stays talkative.
    """
    Image.init()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _check_size(size: tuple[int, int], config: DecodeConfig) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DecodeError(f"it has no pixels ({width}×{height})")
    if width * height > config.max_pixels:
        raise DecodeError(f"too large: {width}×{height} pixels, max_pixels is {config.max_pixels}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1–8. Broken EXIF must not cost a good image: it counts as upright."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises almost any type
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _deep_grey(image).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255 or (image.mode == "F" and high <= 1):
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        values = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _looks_like(data: bytes) -> str:
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return f"looks like {name}"
    head = data[:2048].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in head:
        return "looks like SVG"
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return "looks like HTML"
    if head.startswith(b"<?xml") or (head.startswith(b"<") and b">" in head):
        return "looks like XML"
    if head.startswith((b"{", b"[")):
        return "looks like JSON"
    if not data.strip(b"\0"):
        return "it holds zero bytes only"
    if not any(byte < 9 or 13 < byte < 32 for byte in data[:512]):
        return "looks like text"
    return "unknown or unaccepted format"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated: {text}" if text else "truncated"
    if isinstance(error, UnidentifiedImageError) or not text:
        return "corrupt: its header cannot be read"
    return f"corrupt: {text}"


def to_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, of edge `size`."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
