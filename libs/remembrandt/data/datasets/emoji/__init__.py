"""`emoji`: the same named entities drawn by several artists."""

from remembrandt.data.datasets.emoji.recipe import EmojiRecipe
from remembrandt.data.datasets.emoji.styles import STYLES

__all__ = ["STYLES", "EmojiRecipe"]
