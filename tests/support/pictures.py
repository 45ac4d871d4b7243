"""Small drawings with names, in several styles: real files for tests that need pictures and matching texts."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40), "blue": (29, 78, 216), "green": (22, 140, 60), "yellow": (240, 200, 20),
    "purple": (126, 34, 206), "orange": (234, 110, 12), "black": (20, 20, 20), "pink": (236, 72, 153),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar", "moon", "arrow")
STYLES = ("filled", "outline", "small", "striped")
LICENCES = {"filled": "Apache-2.0", "outline": "MIT", "small": "CC-BY-4.0", "striped": "CC-BY-SA-4.0"}


def write_pictures(folder: Path, size: int = 48) -> int:
    """Writes one PNG, caption and metadata file a drawing; returns how many (shapes × colours × styles = 320)."""
    count = 0
    for shape, colour, style in drawings():
        stem = folder / style / f"{colour}-{shape}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw(shape, colour, style, size).save(stem.with_suffix(".png"))
        stem.with_suffix(".txt").write_text(f"{colour} {shape}")
        stem.with_suffix(".json").write_text(
            json.dumps(
                {
                    "captions": [f"a {style} {colour} {shape}", f"{shape}, {colour}"],
                    "group": f"{colour}-{shape}",
                    "style": style,
                    "entity": f"{colour}-{shape}",
                    "split": "held-out" if shape in ("moon", "arrow") else "train",
                    "licence": LICENCES[style],
                }
            )
        )
        count += 1
    return count


def drawings() -> Iterator[tuple[str, str, str]]:
    """All (shape, colour, style)."""
    return ((shape, colour, style) for shape in SHAPES for colour in COLOURS for style in STYLES)


def draw(shape: str, colour: str, style: str, size: int = 48) -> Image.Image:
    """One drawing on white."""
    scale = 4
    canvas = Image.new("L", (size * scale, size * scale), 0)
    margin = size * scale * (0.3 if style == "small" else 0.12)
    _shape(ImageDraw.Draw(canvas), shape, margin, size * scale - margin)
    if style == "outline":
        inner = Image.new("L", canvas.size, 0)
        _shape(ImageDraw.Draw(inner), shape, margin * 1.8, size * scale - margin * 1.8)
        canvas.paste(0, mask=inner)
    if style == "striped":
        stripes = ImageDraw.Draw(canvas)
        for y in range(0, size * scale, 6 * scale):
            stripes.rectangle([0, y, size * scale, y + 2 * scale], fill=0)
    mask = canvas.resize((size, size), Image.Resampling.BOX)
    picture = Image.new("RGB", (size, size), "white")
    picture.paste(COLOURS[colour], mask=mask)
    return picture


def _shape(pen: ImageDraw.ImageDraw, shape: str, a: float, b: float) -> None:
    middle, third = (a + b) / 2, (b - a) / 3
    match shape:
        case "circle":
            pen.ellipse([a, a, b, b], fill=255)
        case "square":
            pen.rectangle([a, a, b, b], fill=255)
        case "triangle":
            pen.polygon([(middle, a), (b, b), (a, b)], fill=255)
        case "star":
            pen.polygon([(middle, a), (b, b), (a, a + third), (b, a + third), (a, b)], fill=255)
        case "cross":
            pen.rectangle([a + third, a, b - third, b], fill=255)
            pen.rectangle([a, a + third, b, b - third], fill=255)
        case "ring":
            pen.ellipse([a, a, b, b], fill=255)
            pen.ellipse([a + third * 0.8, a + third * 0.8, b - third * 0.8, b - third * 0.8], fill=0)
        case "diamond":
            pen.polygon([(middle, a), (b, middle), (middle, b), (a, middle)], fill=255)
        case "bar":
            pen.rectangle([a, a + third, b, b - third], fill=255)
        case "moon":
            pen.ellipse([a, a, b, b], fill=255)
            pen.ellipse([a + third, a - third * 0.3, b + third, b - third * 0.3], fill=0)
        case "arrow":
            pen.rectangle([a, a + third, middle, b - third], fill=255)
            pen.polygon([(middle, a), (b, middle), (middle, b)], fill=255)
        case _:
            raise AssertionError(shape)
