"""Finds and renders the drawing of an entity in a style's package."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from remembrandt.data.datasets.content import UnusableItemError
from remembrandt.data.datasets.emoji.entities import Entity, normal_code
from remembrandt.data.datasets.emoji.styles import Style
from remembrandt.data.datasets.pixels import over_white
from remembrandt.data.datasets.text import slug_of
from remembrandt.errors import SourceError

# A drawing that leaves fewer pixels than this share of the canvas non-white cannot be seen on white.
_VISIBLE_SHARE = 0.02
_VISIBLE_CHANGE = 24


class Drawings(Protocol):
    """The drawings of one style."""

    def codes(self) -> set[str]:
        """Codes of the entities that are drawn."""

    def render(self, code: str, size: int) -> Image.Image:
        """The drawing over white as RGB, `size` pixels square."""

    def artist(self, code: str) -> str:
        """Who drew it."""


def open_drawings(style: Style, package: Path, entities: Mapping[str, Entity]) -> Drawings:
    """Reads a style's unpacked package and joins its drawings to the entities.

    Raises:
        SourceError: the package states another licence than we know.
    """
    stated = json.loads((package / "package.json").read_text(encoding="utf-8")).get("license")
    if stated != style.licence:
        raise SourceError(f"{style.source} states the licence {stated}, not {style.licence}: leave out '{style.name}'")
    if style.cannot_show:
        entities = {code: item for code, item in entities.items() if not re.search(style.cannot_show, item.label)}
    return IconSet(style, package, entities) if style.layout == "iconify" else DrawingFiles(style, package, entities)


class IconSet:
    """An icon set in Iconify's JSON format; joined by its code table, or by names where it has none."""

    def __init__(self, style: Style, package: Path, entities: Mapping[str, Entity]) -> None:
        self._style = style
        self._set: dict[str, Any] = json.loads((package / "icons.json").read_text(encoding="utf-8"))
        table = package / "chars.json"
        named = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
        aliases = self._set.get("aliases", {})
        drawn = {name for name in (*self._set["icons"], *aliases) if _is_plain(aliases.get(name, {}))} - style.misnamed
        if named:
            self._icons = {normal_code(code): name for code, name in named.items() if name in drawn}
        else:
            self._icons = join_names(drawn, entities.values())
        self._icons = {code: name for code, name in self._icons.items() if code in entities}

    def codes(self) -> set[str]:
        return set(self._icons)

    def artist(self, code: str) -> str:
        return self._style.artist

    def render(self, code: str, size: int) -> Image.Image:
        return render_svg(icon_svg(self._set, self._icons[code], size), size)


class DrawingFiles:
    """One SVG or WebP file an entity, named by code."""

    def __init__(self, style: Style, package: Path, entities: Mapping[str, Entity]) -> None:
        self._style = style
        files = ((normal_code(file.stem), file) for file in sorted((package / style.folder).iterdir()))
        self._files = {code: file for code, file in files if code in entities}
        self._authors = _openmoji_authors(package / "data/openmoji.json")

    def codes(self) -> set[str]:
        return set(self._files)

    def artist(self, code: str) -> str:
        author = self._authors.get(code)
        return f"{author}, {self._style.artist}" if author else self._style.artist

    def render(self, code: str, size: int) -> Image.Image:
        file = self._files[code]
        if file.suffix == ".svg":
            return render_svg(file.read_text(encoding="utf-8"), size)
        try:
            picture = Image.open(file, formats=["WEBP", "PNG"]).convert("RGBA")
        except OSError as error:
            raise UnusableItemError(f"{file.name} cannot be decoded: {error}") from None
        return _checked(over_white(_fit(picture, size)))


def join_names(icons: Iterable[str], entities: Iterable[Entity]) -> dict[str, str]:
    """Entity code → icon name. An exact label wins over a Unicode name, and that over shortcodes; each icon and each
    entity is used once.
    """
    by_level: dict[str, tuple[int, str]] = {}
    for entity in entities:
        for level, name in enumerate(entity.names):
            key = _flat(name)
            if key not in by_level or level < by_level[key][0]:
                by_level[key] = (level, entity.code)
    matches = []
    for icon in icons:
        for penalty, key in enumerate(_spellings(icon)):
            if key in by_level:
                level, code = by_level[key]
                matches.append((level, penalty, icon, code))
                break
    joined: dict[str, str] = {}
    for _, _, icon, code in sorted(matches):
        joined.setdefault(code, icon)
    return joined


def icon_svg(icon_set: Mapping[str, Any], name: str, size: int) -> str:
    """The SVG document of one icon, centred in a square of `size` pixels (Iconify's size and flip rules)."""
    alias = icon_set.get("aliases", {}).get(name, {})
    icon = icon_set["icons"][alias.get("parent", name)]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render_svg(svg: str, size: int) -> Image.Image:
    """RGB over white; a drawing that is not square is centred.

    Raises:
        UnusableItemError: not a drawing, or nothing of it can be seen on white.
    """
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise UnusableItemError(f"cannot be rendered: {error}") from None
    return _checked(over_white(_fit(Image.open(io.BytesIO(png)), size)))


def _fit(picture: Image.Image, size: int) -> Image.Image:
    """Centres a picture in a transparent square, keeping its proportions."""
    if picture.size == (size, size):
        return picture
    scale = size / max(picture.size)
    inner = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return canvas


def _checked(picture: Image.Image) -> Image.Image:
    darkness = picture.convert("L").histogram()
    visible = sum(darkness[: 256 - _VISIBLE_CHANGE])
    if visible < _VISIBLE_SHARE * picture.width * picture.height:
        raise UnusableItemError("nothing can be seen on white")
    return picture


def _is_plain(alias: Mapping[str, Any]) -> bool:
    return not {*alias} - {"parent", "hFlip"}


def _flat(name: str) -> str:
    return slug_of(name.replace("_", "-")).replace("-", "")


def _spellings(icon: str) -> list[str]:
    """What an icon's name may mean: itself, a flag without 'for', a name without a trailing number."""
    flag = re.sub("^flag-for-(flag-)?", "flag-", icon)
    return list(dict.fromkeys(_flat(name) for name in (icon, flag, re.sub("-[0-9]$", "", icon))))


def _openmoji_authors(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    rows = json.loads(table.read_text(encoding="utf-8"))
    return {normal_code(row["hexcode"]): row["openmoji_author"] for row in rows if row["openmoji_author"]}
