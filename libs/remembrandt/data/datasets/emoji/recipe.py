"""Rows of the emoji data set: one drawing of one entity by one artist."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remembrandt.configuration import nearest
from remembrandt.data.datasets.content import Sample, TarContent
from remembrandt.data.datasets.emoji.drawings import Drawings, open_drawings
from remembrandt.data.datasets.emoji.entities import Entity, read_entities
from remembrandt.data.datasets.emoji.styles import EMOJIBASE, EMOJILIB, STYLES, Style
from remembrandt.data.datasets.packages import npm_package, require_module
from remembrandt.data.datasets.splits import stable_fraction
from remembrandt.errors import ConfigError

# Goes up with every change that alters rows, so that an old result is not taken for a new one.
REVISION = 3


@dataclass(frozen=True)
class EmojiRecipe:
    """What to draw: styles by name, pixels a side, with or without skin tones, at most `limit` rows."""

    styles: tuple[str, ...] = tuple(STYLES)
    size: int = 128
    variants: bool = False
    limit: int | None = None
    name: str = "emoji"

    def __post_init__(self) -> None:
        for style in self.styles:
            if style not in STYLES:
                raise ConfigError(f"unknown emoji style '{style}': {nearest(style, list(STYLES))}")
        if not self.styles:
            raise ConfigError(f"no emoji style is chosen: name some of {', '.join(STYLES)}")
        if not 16 <= self.size <= 1024:
            raise ConfigError(f"the size of an emoji must be 16 to 1024 pixels, not {self.size}")

    def request(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": REVISION,
            "styles": sorted(self.styles),
            "size": self.size,
            "variants": self.variants,
            "limit": self.limit,
            "packages": self._versions(),
        }

    def open(self) -> TarContent:
        require_module("resvg_py")
        entities = read_entities(npm_package(*EMOJIBASE), npm_package(*EMOJILIB))
        chosen = {name: STYLES[name] for name in sorted(set(self.styles))}
        drawings = {
            name: open_drawings(style, npm_package(style.package, style.version), entities)
            for name, style in chosen.items()
        }
        rows = select_rows(entities, drawings, self.variants, self.limit)

        def make(key: str) -> Sample:
            entity, style = rows[key]
            return make_sample(key, entities[entity], chosen[style], drawings[style], self.size)

        return TarContent(list(rows), make, self._versions())

    def _versions(self) -> dict[str, str]:
        packages = dict([EMOJIBASE, EMOJILIB])
        return packages | {STYLES[name].package: STYLES[name].version for name in self.styles}


def select_rows(
    entities: Mapping[str, Entity], drawings: Mapping[str, Drawings], variants: bool, limit: int | None
) -> dict[str, tuple[str, str]]:
    """Key → (entity code, style). A limit takes whole entities in an order that only their names decide."""
    drawn = {style: of_style.codes() for style, of_style in drawings.items()}
    order = sorted(entities, key=lambda code: stable_fraction(f"order:{entities[code].slug}"))
    rows = {
        f"{code}_{style}": (code, style)
        for code in order
        if variants or not entities[code].has_skin_tone
        for style in sorted(drawn)
        if code in drawn[style]
    }
    return dict(list(rows.items())[:limit])


def make_sample(key: str, entity: Entity, style: Style, drawings: Drawings, size: int) -> Sample:
    """Renders one drawing as PNG and says all that is known about it."""
    stream = io.BytesIO()
    drawings.render(entity.code, size).save(stream, "PNG")
    fields = {
        "caption": entity.label,
        "captions": captions_of(entity, style),
        "entity": entity.slug,
        "base": entity.base,
        "group": entity.group,
        "category": entity.category,
        "code": entity.code,
        "style": style.name,
        "artist": drawings.artist(entity.code),
        "licence": style.licence,
        "split": entity.split,
        "source": style.source,
        "width": size,
        "height": size,
    }
    return Sample(key, stream.getvalue(), "png", fields)


def captions_of(entity: Entity, style: Style) -> list[str]:
    """Label; label in the style's words; label with keywords; further keywords; the names people type."""
    texts = [
        entity.label,
        style.phrase.format(entity.label),
        ", ".join([entity.label, *entity.keywords]),
        ", ".join(entity.more_keywords),
        ", ".join(entity.shortcodes),
    ]
    return list(dict.fromkeys(text for text in texts if text))
