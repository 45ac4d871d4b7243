"""The named entities of the emoji standard: labels, keywords, families. Joined on code points without U+FE0F.

Sources: emojibase-data (labels, tags, groups, shortcodes; MIT, after CLDR) and emojilib (keywords; MIT).
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remembrandt.data.datasets.splits import split_of
from remembrandt.data.datasets.text import slug_of

SHORTCODE_SETS = ("cldr", "emojibase", "iamcal", "github", "joypixels", "emojibase-legacy")
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_MAN_OR_WOMAN, _PERSON = {"1f468", "1f469"}, "1f9d1"
_RELATIVES = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}


@dataclass(frozen=True)
class Entity:
    """One emoji as a thing with a name.

    Attributes:
        code: code points in hex joined by '-', lower case, without the variation selector U+FE0F.
        slug: label in the characters a-z, 0-9 and '-'; unique.
        group: slug of the same entity without skin tone.
        base: slug of the family it belongs to (skin tones, genders and directions of one thing): splits never
            part a family.
        names: further names that an icon set may use, most trusted first.
    """

    code: str
    label: str
    slug: str
    group: str
    base: str
    category: str
    split: str
    keywords: tuple[str, ...]
    more_keywords: tuple[str, ...]
    shortcodes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def has_skin_tone(self) -> bool:
        return self.slug != self.group


def normal_code(code: str) -> str:
    """`1F3DD-FE0F` → `1f3dd`; leading zeros of each point are removed, as icon sets differ in them."""
    parts = (part.lower().lstrip("0") or "0" for part in re.split("[-_]", code))
    return "-".join(part for part in parts if part != "fe0f")


def read_entities(emojibase: Path, emojilib: Path) -> dict[str, Entity]:
    """All entities by code, from the unpacked packages."""
    raw = list(_flatten(_load(emojibase / "en/data.json")))
    groups = {group["order"]: group["message"] for group in _load(emojibase / "en/messages.json")["groups"]}
    shortcodes = [_load(emojibase / f"en/shortcodes/{name}.json") for name in SHORTCODE_SETS]
    extra = {key.replace("\ufe0f", ""): words for key, words in _load(emojilib / "dist/emoji-en-US.json").items()}
    slugs = _unique_slugs(raw)
    entities = {}
    for item, group in raw:
        code = normal_code(item["hexcode"])
        base = slugs[_family(normal_code(group["hexcode"]), slugs)]
        codes = _shortcodes(item["hexcode"], shortcodes)
        symbol = item["emoji"].replace("\ufe0f", "")
        entities[code] = Entity(
            code=code,
            label=item["label"],
            slug=slugs[code],
            group=slugs[normal_code(group["hexcode"])],
            base=base,
            category=groups.get(group.get("group"), "components"),
            split=split_of(base, "emoji"),
            keywords=tuple(group.get("tags", ())),
            more_keywords=tuple(dict.fromkeys(word.replace("_", " ") for word in extra.get(symbol, ()))),
            shortcodes=tuple(dict.fromkeys(name.replace("_", " ") for name in codes)),
            names=tuple(dict.fromkeys([item["label"], *_unicode_name(symbol), *codes])),
        )
    return entities


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _flatten(items: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each emoji with the one that it is a skin tone of (itself, if none)."""
    for item in items:
        yield item, item
        for variant in item.get("skins", ()):
            yield variant, item


def _unique_slugs(raw: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    slugs: dict[str, str] = {}
    taken: set[str] = set()
    for item, _ in raw:
        code, slug = normal_code(item["hexcode"]), slug_of(item["label"])
        slugs[code] = slug if slug and slug not in taken else f"{slug or 'emoji'}-{code}"
        taken.add(slugs[code])
    return slugs


def _family(code: str, known: Mapping[str, str]) -> str:
    """The code of the neutral member of a family: no gender, no direction, no particular relatives."""
    parts = [part for part in code.split("-") if part not in _SKIN_TONES]
    if len(parts) > 1 and set(parts) - {"200d"} <= _RELATIVES:
        return "1f46a"
    if "2764" in parts and set(parts) & _RELATIVES:
        return "1f48f" if "1f48b" in parts else "1f491"
    neutral = re.sub("-200d-(2640|2642|27a1)", "", "-".join(parts))
    if "-200d-" in neutral and neutral.split("-")[0] in _MAN_OR_WOMAN:
        neutral = "-".join([_PERSON, *neutral.split("-")[1:]])
    return neutral if neutral in known else code


def _shortcodes(hexcode: str, sets: list[dict[str, Any]]) -> list[str]:
    names = (known.get(hexcode, ()) for known in sets)
    return [name for found in names for name in ([found] if isinstance(found, str) else found)]


def _unicode_name(symbol: str) -> list[str]:
    name = unicodedata.name(symbol, "") if len(symbol) == 1 else ""
    return [name.lower()] if name else []
