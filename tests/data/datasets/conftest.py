"""Small packages in the layout of the real ones, put where fetched ones would lie, so that recipes run unchanged."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remembrandt.data.datasets.emoji.styles import EMOJIBASE, EMOJILIB, STYLES
from remembrandt.data.datasets.packages import CACHE_VARIABLE


def _square(colour: str, x: int = 2) -> str:
    return f'<path fill="{colour}" d="M{x} 2h6v12h-6z"/>'


def _entity(code: str, label: str, **more: Any) -> dict[str, Any]:
    emoji = "".join(chr(int(part, 16)) for part in code.split("-"))
    return {"hexcode": code, "label": label, "emoji": emoji, "group": 0, "tags": [], **more}


ENTITIES = [
    _entity("1F648", "see-no-evil monkey", tags=["evil", "monkey"], group=3),
    _entity("1F3DD-FE0F", "desert island", tags=["island"], group=5),
    _entity("1F52B", "water pistol", group=7),
    _entity("1F446", "backhand index pointing up", skins=[_entity("1F446-1F3FB", "backhand index pointing up: light")]),
    _entity("1F9D1-200D-1F3A8", "artist"),
    _entity("1F468-200D-1F3A8", "man artist"),
    _entity("1F469-200D-1F3A8", "woman artist"),
    _entity("1F431", "cat face"),
    _entity("1F408", "cat"),
    _entity("1F32B-FE0F", "fog"),
    _entity("1F499", "blue heart"),
    _entity("1F1EB-1F1F7", "flag: France"),
]
ICONS = {
    "see-no-evil-monkey": _square("brown"),
    "desert-island": _square("green"),
    "pistol": _square("black"),
    "backhand-index-pointing-up": _square("orange"),
    "backhand-index-pointing-up-light": _square("orange", 8),
    "artist": _square("purple"),
    "man-artist": _square("blue"),
    "woman-artist": _square("red"),
    "cat-face": _square("gray"),
    "cat": _square("black"),
    "fog": '<path fill="#fefefe" d="M0 0h16v16H0z"/>',
}
CHARS = {
    "1f648": "see-no-evil-monkey",
    "1f3dd": "desert-island",
    "1f446": "backhand-index-pointing-up",
    "1f446-1f3fb": "backhand-index-pointing-up-light",
    "1f9d1-200d-1f3a8": "artist",
    "1f468-200d-1f3a8": "man-artist",
    "1f469-200d-1f3a8": "woman-artist",
    "1f431": "cat-face",
    "1f408": "cat-mirrored",
    "1f32b": "fog",
    "1f999": "unknown-to-emojibase",
}


def _package(cache: Path, name: str, version: str, licence: str, files: dict[str, bytes | Any]) -> None:
    folder = cache / "npm" / f"{name.removeprefix('@').replace('/', '-')}-{version}" / "package"
    for path, content in {"package.json": {"name": name, "version": version, "license": licence}, **files}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def _style(cache: Path, name: str, files: dict[str, bytes | Any], licence: str | None = None) -> None:
    style = STYLES[name]
    _package(cache, style.package, style.version, licence or style.licence, files)


def _webp() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (64, 32), (200, 30, 30, 255)).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def add_style(cache: Path) -> Callable[..., None]:
    """add_style(name, files, licence=None): puts the package of an emoji style into the cache."""
    return lambda name, files, licence=None: _style(cache, name, files, licence)


@pytest.fixture
def emoji_packages(cache: Path) -> Path:
    """Twelve entities and five styles: by code table (noto), by names (fxemoji), by files (the others)."""
    shortcodes = {f"en/shortcodes/{name}.json": {} for name in ("cldr", "emojibase", "iamcal", "github", "joypixels")}
    shortcodes["en/shortcodes/emojibase-legacy.json"] = {"1F431": "cat"}
    shortcodes["en/shortcodes/github.json"] = {"1F648": ["see_no_evil"], "1F446": "point_up_2"}
    groups = [{"order": 0, "message": "smileys & emotion"}, {"order": 3, "message": "animals & nature"}]
    messages = {"groups": groups}
    _package(cache, *EMOJIBASE, "MIT", {"en/data.json": ENTITIES, "en/messages.json": messages, **shortcodes})
    _package(cache, *EMOJILIB, "MIT", {"dist/emoji-en-US.json": {"🙈": ["see_no_evil_monkey", "haha"]}})
    aliases = {"cat-mirrored": {"parent": "cat", "hFlip": True}}
    icons = {name: {"body": body} for name, body in ICONS.items()}
    _style(cache, "noto", {"icons.json": {"icons": icons, "aliases": aliases}, "chars.json": CHARS})
    named = {"seenoevil": "brown", "cat": "black", "pistol": "black", "rotated": "red", "up": "gray"}
    fx_icons = {name: {"body": _square(colour), "width": 16, "height": 8} for name, colour in named.items()}
    turned = {"desert-island": {"parent": "rotated", "rotate": 1}}
    _style(cache, "fxemoji", {"icons.json": {"icons": fx_icons, "aliases": turned}, "chars.json": {}})
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{_square("teal")}</svg>'.encode()
    authors = [{"hexcode": "1F648", "openmoji_author": "Ada L."}, {"hexcode": "1F408", "openmoji_author": ""}]
    drawn = {"color/svg/1F648.svg": svg, "color/svg/1F408.svg": svg, "data/openmoji.json": authors}
    drawn |= {f"black/svg/{code}.svg": svg for code in ("1F648", "1F499", "1F1EB-1F1F7")}
    _style(cache, "openmoji", drawn)
    _style(cache, "fluent-3d", {"assets/1f648.webp": _webp(), "assets/1f408.webp": b"not a picture"})
    return cache


@pytest.fixture
def read_shards() -> Callable[[Path], dict[str, dict[str, bytes]]]:
    """read_shards(folder): key → extension → content, over all tar files."""

    def read(folder: Path) -> dict[str, dict[str, bytes]]:
        samples: dict[str, dict[str, bytes]] = {}
        for shard in sorted(folder.glob("*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    key, _, extension = member.name.rpartition(".")
                    stream = tar.extractfile(member)
                    assert stream is not None
                    samples.setdefault(key, {})[extension] = stream.read()
        return samples

    return read


@pytest.fixture
def digests() -> Callable[[Path], dict[str, bytes]]:
    """digests(folder): the content of every data file by name, markers apart."""
    return lambda folder: {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
