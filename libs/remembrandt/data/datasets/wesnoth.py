"""`wesnoth`: fantasy creatures with many drawings each (sprites in every pose, portraits) and a long description.

From Debian's `wesnoth-1.16-data`. Its copyright file puts the art under GPL-2+ and names no artist per file.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from remembrandt.data.datasets.content import Sample, TarContent, UnusableItemError
from remembrandt.data.datasets.packages import debian_package
from remembrandt.data.datasets.pixels import over_white
from remembrandt.data.datasets.splits import split_of
from remembrandt.data.datasets.text import clean_text, slug_of
from remembrandt.data.datasets.wml import Tag, read_tags
from remembrandt.errors import SourceError

PACKAGE = "wesnoth-1.16-data"
REVISION = 1
LICENCE, ARTIST = "GPL-2.0-or-later", "The Battle for Wesnoth contributors"
_IMAGE = re.compile(r"(?:units|portraits)/[\w+@/.\-\[\]~,]+?\.png")
_CHOICE = re.compile(r"\[([\d~,]+)\]")


@dataclass(frozen=True)
class Unit:
    """One kind of creature."""

    slug: str
    name: str
    race: str
    description: str
    base_image: str
    images: frozenset[str]


@dataclass(frozen=True)
class WesnothRecipe:
    """At most `limit` drawings."""

    limit: int | None = None
    name: str = "wesnoth"

    def request(self) -> dict[str, Any]:
        return {"name": self.name, "revision": REVISION, "limit": self.limit}

    def open(self) -> TarContent:
        package = debian_package(PACKAGE)
        version = (package / "VERSION").read_text(encoding="utf-8")
        rows = {key_of(image): (unit, image) for image, unit in find_drawings(data_folder(package)).items()}

        def make(key: str) -> Sample:
            return make_sample(key, *rows[key], f"debian:{PACKAGE}={version}")

        return TarContent(sorted(rows)[: self.limit], make, {PACKAGE: version})


def data_folder(package: Path) -> Path:
    """Where the game's data lies.

    Raises:
        SourceError: nowhere.
    """
    folders = sorted(package.glob("usr/share/games/wesnoth/*/data"))
    if not folders:
        raise SourceError(f"{package} holds no data of {PACKAGE}: remove the folder, it will be fetched again")
    return folders[0]


def find_drawings(data: Path) -> dict[Path, Unit]:
    """Image file → the unit it shows. One that several units name goes to the one whose main image or name it fits."""
    owners: dict[Path, tuple[int, str, Unit]] = {}
    for pack in (data / "core", *sorted((data / "campaigns").glob("*"))):
        roots = [folder for folder in (pack / "images", data / "core/images") if folder.is_dir()]
        for unit in read_units(pack):
            for root in roots:
                for image in _files(unit, root):
                    claim = (-_affinity(unit, image.relative_to(root).as_posix()), unit.slug, unit)
                    if image not in owners or claim[:2] < owners[image][:2]:
                        owners[image] = claim
    return {image: unit for image, (_, _, unit) in sorted(owners.items())}


def read_units(pack: Path) -> Iterator[Unit]:
    """The unit types of the core game or of a campaign that have a name and an image."""
    for file in sorted(pack.glob("units/**/*.cfg")):
        for tag in read_tags(file.read_text(encoding="utf-8", errors="replace"), "unit_type"):
            name = tag.attributes.get("name", "").rpartition("^")[2]
            image = tag.attributes.get("image", "").split("~")[0].split(":")[0]
            if name and image.startswith("units/"):
                yield _unit(name, image, tag)


def make_sample(key: str, unit: Unit, image: Path, source: str) -> Sample:
    """One drawing over white as PNG, in its own size."""
    portrait = "portraits" in image.parts
    stream = io.BytesIO()
    try:
        picture = over_white(Image.open(image, formats=["PNG"]))
    except OSError as error:
        raise UnusableItemError(f"cannot be decoded: {error}") from None
    picture.save(stream, "PNG")
    pose = pose_of(unit, image)
    shown = f"portrait of {unit.name}, painted" if portrait else f"{unit.name}, a sprite in pixel art"
    texts = [unit.name, shown, f"{unit.name}, {pose}" if pose else "", f"{unit.name}, {unit.race}", unit.description]
    fields = {
        "caption": unit.name,
        "captions": list(dict.fromkeys(text for text in texts if text)),
        "entity": unit.slug,
        "base": unit.slug,
        "group": unit.slug,
        "category": unit.race,
        "style": "portrait" if portrait else "sprite",
        "pose": pose,
        "artist": ARTIST,
        "licence": LICENCE,
        "split": split_of(unit.slug, "wesnoth"),
        "source": source,
        "width": picture.width,
        "height": picture.height,
    }
    return Sample(key, stream.getvalue(), "png", fields)


def key_of(image: Path) -> str:
    """`…/core/images/units/elves-wood/archer+female.png` → `core-units-elves-wood-archer+female`."""
    parts = image.with_suffix("").parts
    cut = len(parts) - 1 - parts[::-1].index("images")
    return re.sub(r"[^\w+-]", "_", "-".join([parts[cut - 1], *parts[cut + 1 :]]))


def pose_of(unit: Unit, image: Path) -> str:
    """What the file name says beyond the unit's own: `archer+female-bow-attack1` → `female bow attack`."""
    rest = image.stem.removeprefix(Path(unit.base_image).stem)
    return " ".join(word for word in re.split(r"[^a-z]+", rest.lower()) if word) if rest != image.stem else ""


def expand_choices(path: str) -> list[str]:
    """`bow-[1~3,2].png` → `bow-1.png`, `bow-2.png`, `bow-3.png`."""
    match = _CHOICE.search(path)
    if match is None:
        return [path]
    numbers: dict[str, None] = {}
    for part in match[1].split(","):
        first, _, last = part.partition("~")
        steps = range(int(first), int(last) + 1) if first and last else [part]
        numbers.update(dict.fromkeys(str(step) for step in steps))
    expanded = (path[: match.start()] + number + path[match.end() :] for number in numbers)
    return [result for item in expanded for result in expand_choices(item)]


def _unit(name: str, image: str, tag: Tag) -> Unit:
    images = {path for found in _IMAGE.findall(tag.text) for path in expand_choices(found)}
    race = tag.attributes.get("race", "").split()[0] if tag.attributes.get("race", "").strip() else "creature"
    return Unit(
        slug=slug_of(tag.attributes.get("id", name)),
        name=name,
        race=race,
        description=clean_text(tag.attributes.get("description", "")),
        base_image=image,
        images=frozenset(images),
    )


def _files(unit: Unit, root: Path) -> Iterable[Path]:
    """The files that the unit's text names, and all poses of its main image."""
    named = {root / image for image in unit.images}
    main = root / unit.base_image
    poses = re.compile(re.escape(main.stem) + r"([-+\d].*)?\.png")
    beside = main.parent.iterdir() if main.parent.is_dir() else ()
    return {file for file in named if file.is_file()} | {file for file in beside if poses.fullmatch(file.name)}


def _affinity(unit: Unit, path: str) -> int:
    """How well an image fits a unit: characters of the main image's name that it begins with, or, for portraits,
    words of the unit's name.
    """
    if path.startswith("portraits/"):
        return len({*re.split(r"[^a-z]+", Path(path).stem)} & {*unit.slug.split("-")})
    stem = unit.base_image.removesuffix(".png")
    rest = path.removesuffix(".png").removeprefix(stem)
    return len(stem) if path.startswith(stem) and not rest[:1].isalpha() else 0
