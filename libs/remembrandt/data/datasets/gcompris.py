"""`gcompris`: photographs and pictures with names, some with a paragraph, from the educational suite GCompris.

Debian's `gcompris-qt-data` holds them in Qt resource files. Licences and authors stand in README files beside the
pictures, in Debian's copyright file for the vocabulary.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from remembrandt.data.datasets.content import Sample, TarContent, UnusableItemError
from remembrandt.data.datasets.credits import Credit, read_credits
from remembrandt.data.datasets.packages import debian_package
from remembrandt.data.datasets.rcc import read_rcc
from remembrandt.data.datasets.splits import split_of
from remembrandt.data.datasets.text import clean_text, slug_of, words_of
from remembrandt.errors import SourceError

PACKAGE = "gcompris-qt-data"
REVISION = 1
_ROOT = "gcompris/src/activities/"
_EXPLORE = ("explore_farm_animals", "explore_monuments", "explore_world_animals", "explore_world_music")
_WHOLE_PACKAGE = Credit("GCompris contributors", "GPL-3.0-or-later")
# Debian's copyright file on src/activities/lang/resource/words_sample/*.
_VOCABULARY = Credit("Art4Apps", "CC-BY-SA-3.0")
_NAMED = {
    "categorization/resource/images/fishes": "fish",
    "categorization/resource/images/monuments": "monument",
    "categorization/resource/images/others": "household object",
    "categorization/resource/images/renewable": "renewable energy",
    "categorization/resource/images/tools": "tool",
    "lang/resource/words_sample": "",
}
_TRANSLATED = r'qsTr\("((?:[^"\\]|\\.)*)"\)'


@dataclass(frozen=True)
class Picture:
    """One picture of the package and what is said about it."""

    path: str
    title: str
    paragraph: str
    style: str
    category: str
    credit: Credit

    @property
    def key(self) -> str:
        return slug_of(self.path.removeprefix(_ROOT).replace("/resource/", "/").rpartition(".")[0])


@dataclass(frozen=True)
class GcomprisRecipe:
    """At most `limit` pictures."""

    limit: int | None = None
    name: str = "gcompris"

    def request(self) -> dict[str, Any]:
        return {"name": self.name, "revision": REVISION, "limit": self.limit}

    def open(self) -> TarContent:
        package = debian_package(PACKAGE)
        files = read_resources(package)
        pictures = {picture.key: picture for picture in find_pictures(files)}
        version = (package / "VERSION").read_text(encoding="utf-8")

        def make(key: str) -> Sample:
            return make_sample(pictures[key], files[pictures[key].path], f"debian:{PACKAGE}={version}")

        return TarContent(sorted(pictures)[: self.limit], make, {PACKAGE: version})


def read_resources(package: Path) -> dict[str, bytes]:
    """All files in the package's resources below the activities, by path.

    Raises:
        SourceError: there are none.
    """
    folders = sorted(package.glob("usr/share/gcompris*/rcc"))
    files = {path: data for folder in folders for file in sorted(folder.glob("*.rcc")) for path, data in read_rcc(file)}
    files = {path: data for path, data in files.items() if path.startswith(_ROOT)}
    if not files:
        raise SourceError(f"{package} holds no resources of {PACKAGE}: remove the folder, it will be fetched again")
    return files


def find_pictures(files: Mapping[str, bytes]) -> Iterator[Picture]:
    """Every picture that has a name."""
    credits = _credits(files)
    yield from _explained(files, credits)
    yield from _titled(files, credits)
    yield from _named(files, credits)


def make_sample(picture: Picture, data: bytes, source: str) -> Sample:
    """The picture as it is in the package, with its texts."""
    try:
        width, height = Image.open(io.BytesIO(data), formats=["WEBP", "PNG", "JPEG"]).size
    except OSError as error:
        raise UnusableItemError(f"cannot be decoded: {error}") from None
    entity = slug_of(picture.title)
    known = not picture.category or picture.category in picture.title
    texts = [picture.title, "" if known else f"{picture.title}, {picture.category}", picture.paragraph]
    fields = {
        "caption": picture.title,
        "captions": list(dict.fromkeys(text for text in texts if text)),
        "entity": entity,
        "base": entity,
        "group": entity,
        "category": picture.category,
        "style": picture.style,
        "artist": picture.credit.artist,
        "licence": picture.credit.licence,
        "split": split_of(entity, "gcompris"),
        "source": source,
        "width": width,
        "height": height,
    }
    return Sample(picture.key, data, PurePosixPath(picture.path).suffix.lstrip("."), fields)


def _credits(files: Mapping[str, bytes]) -> dict[str, Credit]:
    """Credit by path of the picture, from every README."""
    found = {}
    for path, data in files.items():
        if PurePosixPath(path).name == "README":
            folder = str(PurePosixPath(path).parent)
            credits = read_credits(data.decode("utf-8", "replace"))
            found.update({f"{folder}/{name}": credit for name, credit in credits.items()})
    return found


def _explained(files: Mapping[str, bytes], credits: Mapping[str, Credit]) -> Iterator[Picture]:
    """Photographs on the maps of the explore activities: a title and a paragraph each."""
    for path in sorted(files):
        activity = path.removeprefix(_ROOT).split("/")[0]
        if activity not in _EXPLORE or not re.search(r"/board/board\d+\.qml$", path):
            continue
        for place in _objects(files[path].decode("utf-8")):
            image = re.search(r'"image2"\s*:\s*"qrc:/([^"]+)"', place)
            title, text = _translated("title", place), _translated("text", place)
            if image and title and image[1] in files:
                category = words_of(activity.removeprefix("explore_")).removesuffix("s")
                credit = credits.get(image[1], _WHOLE_PACKAGE)
                yield Picture(image[1], title, text, "photograph", category, credit)


def _titled(files: Mapping[str, bytes], credits: Mapping[str, Credit]) -> Iterator[Picture]:
    """Whole pictures of the activity 'details': castles, paintings and others, named in one line."""
    for path in sorted(files):
        board = files[path].decode("utf-8") if re.search(r"/details/resource/board/board[\d_]+\.qml$", path) else ""
        title = re.search(rf"instruction\s*:\s*{_TRANSLATED}", board)
        image = re.search(r'"pixmapfile"\s*:\s*"(image/[^"]+_background\.webp)"', board)
        if title and image:
            picture = f"{_ROOT}details/resource/{image[1]}"
            if picture in files:
                credit = credits.get(picture, _WHOLE_PACKAGE)
                yield Picture(picture, clean_text(title[1]), "", "scene", "place or painting", credit)


def _named(files: Mapping[str, bytes], credits: Mapping[str, Credit]) -> Iterator[Picture]:
    """Pictures whose file name says what they show."""
    for path in sorted(files):
        folder, _, name = path.removeprefix(_ROOT).rpartition("/")
        if folder not in _NAMED or not name.endswith(".webp"):
            continue
        title = words_of(re.sub(r"\d+$", "", name.removesuffix(".webp")))
        vocabulary = folder.startswith("lang/")
        credit = _VOCABULARY if vocabulary else credits.get(path, _WHOLE_PACKAGE)
        yield Picture(path, title, "", "illustration" if vocabulary else "photograph", _NAMED[folder], credit)


def _objects(qml: str) -> list[str]:
    """The innermost `{…}` of a board: one for each place on the map."""
    return re.findall(r"\{[^{}]*\}", qml)


def _translated(name: str, text: str) -> str:
    match = re.search(rf'"{name}"\s*:\s*{_TRANSLATED}', text)
    return clean_text(match[1]) if match else ""
