"""Transparency over white, as every source of the product shows it."""

from PIL import Image


def over_white(picture: Image.Image) -> Image.Image:
    """Flattens transparency; RGB."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
