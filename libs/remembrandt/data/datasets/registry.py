"""The data sets by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from remembrandt.configuration import nearest
from remembrandt.data.datasets.content import Recipe
from remembrandt.data.datasets.emoji import EmojiRecipe
from remembrandt.data.datasets.gcompris import GcomprisRecipe
from remembrandt.data.datasets.taxon import TaxonRecipe
from remembrandt.data.datasets.wesnoth import WesnothRecipe
from remembrandt.errors import ConfigError


@dataclass(frozen=True)
class Known:
    """One data set in the list: what it is, where it comes from, and how it is made from options."""

    name: str
    summary: str
    origin: str
    make: Callable[..., Recipe]
    options: tuple[str, ...] = ("limit",)


KNOWN = {
    known.name: known
    for known in (
        Known(
            "emoji",
            "13.9k drawings of 1.9k named entities by several artists, 9 styles, several captions each",
            "npm",
            EmojiRecipe,
            ("limit", "styles", "size", "variants"),
        ),
        Known("gcompris", "359 photographs and pictures with names, some with a paragraph", "apt", GcomprisRecipe),
        Known("wesnoth", "5.4k sprites and portraits of 243 fantasy creatures with descriptions", "apt", WesnothRecipe),
        Known("taxon", "216k first paragraphs of Wikipedia articles on living things; text only", "PyPI", TaxonRecipe),
        Known(
            "taxon-names",
            "2.6M scientific names of living things; text only",
            "PyPI",
            lambda **options: TaxonRecipe("taxon-names", **options),
        ),
    )
}


def make_recipe(name: str, **options: Any) -> Recipe:
    """The recipe of a named data set; options that are None are left to its defaults.

    Raises:
        ConfigError: unknown name, an option that this data set does not have, or an invalid value.
    """
    if name not in KNOWN:
        raise ConfigError(f"unknown data set '{name}': {nearest(name, list(KNOWN))}")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in KNOWN[name].options:
            raise ConfigError(f"'{name}' has no option --{key}: it takes --{', --'.join(KNOWN[name].options)}")
    if given.get("limit", 1) < 1:
        raise ConfigError(f"--limit must be at least 1, not {given['limit']}")
    return KNOWN[name].make(**given)
