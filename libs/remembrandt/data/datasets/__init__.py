"""Data sets that anyone can prepare: images and texts from the package registries, with licence and artist per row."""

from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.registry import KNOWN, make_recipe

__all__ = ["KNOWN", "make_recipe", "prepare"]
