"""Data sets that anyone can prepare: images and texts from the package registries, with licence and artist per row."""

from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.emoji import EmojiRecipe

__all__ = ["EmojiRecipe", "prepare"]
