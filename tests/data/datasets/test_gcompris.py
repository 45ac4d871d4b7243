"""GCompris: Qt resource files, pictures with names, credits from READMEs."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remembrandt.data.datasets.credits import Credit, read_credits, spdx
from remembrandt.data.datasets.gcompris import GcomprisRecipe
from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.rcc import read_rcc
from remembrandt.errors import SourceError
from remembrandt.storage import open_store

ROOT = "gcompris/src/activities"
BOARD = """
QtObject {
    property var tab : [
        { "image": "qrc:/q.svg", "title": qsTr("Polar bear"), "text": qsTr("It says \\"hello\\" to <b>ice</b>."),
          "image2": "qrc:/gcompris/src/activities/explore_world_animals/resource/animals/polar_bear.webp" },
        { "title": qsTr("Missing"), "image2": "qrc:/gcompris/src/activities/nowhere.webp" }
    ]
}
"""
DETAILS = """
   property string instruction: qsTr("Egeskov Castle, Denmark")
   property var levels: [ { "pixmapfile" : "image/Egeskov_background.webp", "type" : "SHAPE_BACKGROUND_IMAGE" } ]
"""
README = """Copyright: anonymous
License: Public Domain
Source: https://example.org/File:Bear.jpg
Files:
polar_bear.webp
"""


def rcc_bytes(files: dict[str, bytes]) -> bytes:
    """A version 1 resource file of one flat folder chain per path; odd files are compressed."""
    tree: dict[str, Any] = {}
    for path, data in files.items():
        node = tree
        *folders, last = path.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = data
    nodes, names, contents = [("", tree)], b"", b""
    records: list[bytes] = []
    for position, (name, content) in enumerate(nodes):
        name_offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, dict):
            records.append(struct.pack(">IHII", name_offset, 2, len(content), len(nodes)))
            nodes.extend(content.items())
        else:
            compress = position % 2
            body = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
            records.append(struct.pack(">IHHHI", name_offset, compress, 0, 0, len(contents)))
            contents += struct.pack(">I", len(body)) + body
    head = struct.calcsize(">4siiii")
    tree_at, data_at = head, head + 14 * len(records)
    return (
        struct.pack(">4siiii", b"qres", 1, tree_at, data_at, data_at + len(contents))
        + b"".join(records)
        + contents
        + names
    )


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(stream, "WEBP")
    return stream.getvalue()


@pytest.fixture
def gcompris(cache: Path, tmp_path: Path, read_shards: Callable[[Path], dict[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Fields by key of the data set made from one small resource file."""
    animals = f"{ROOT}/explore_world_animals/resource"
    files = {
        f"{animals}/board/board1.qml": BOARD.encode(),
        f"{animals}/animals/polar_bear.webp": picture(),
        f"{animals}/animals/README": README.encode(),
        f"{ROOT}/details/resource/board/board1_0.qml": DETAILS.encode(),
        f"{ROOT}/details/resource/image/Egeskov_background.webp": picture(),
        f"{ROOT}/categorization/resource/images/tools/measuringTape12.webp": picture(),
        f"{ROOT}/lang/resource/words_sample/apple.webp": picture(),
        f"{ROOT}/lang/resource/words_sample/broken.webp": b"RIFF",
        "gcompris/other/ignored.webp": picture(),
    }
    folder = cache / "debian/gcompris-qt-data"
    (folder / "usr/share/gcompris-qt/rcc").mkdir(parents=True)
    (folder / "usr/share/gcompris-qt/rcc/all.rcc").write_bytes(rcc_bytes(files))
    (folder / "VERSION").write_text("3.1-2")
    prepare(GcomprisRecipe(), open_store(tmp_path / "out"))
    return {key: json.loads(files["json"]) for key, files in read_shards(tmp_path / "out").items()}


def test_a_photograph_on_a_map_has_title_paragraph_and_credit(gcompris: dict[str, Any]) -> None:
    row = gcompris["explore-world-animals-animals-polar-bear"]
    assert row["captions"] == ["Polar bear", "Polar bear, world animal", 'It says "hello" to ice.']
    assert (row["artist"], row["licence"]) == ("anonymous", "LicenseRef-Public-Domain")
    assert (row["entity"], row["style"], row["source"]) == ("polar-bear", "photograph", "debian:gcompris-qt-data=3.1-2")
    assert (row["width"], row["height"]) == (40, 30)


def test_pictures_are_named_by_their_board_or_their_file(gcompris: dict[str, Any]) -> None:
    assert {key: row["caption"] for key, row in gcompris.items()} == {
        "categorization-images-tools-measuringtape12": "measuring tape",
        "details-image-egeskov-background": "Egeskov Castle, Denmark",
        "explore-world-animals-animals-polar-bear": "Polar bear",
        "lang-words-sample-apple": "apple",
    }


def test_without_a_readme_the_package_licence_holds(gcompris: dict[str, Any]) -> None:
    assert gcompris["details-image-egeskov-background"]["licence"] == "GPL-3.0-or-later"
    assert gcompris["lang-words-sample-apple"]["licence"] == "CC-BY-SA-3.0"


def test_a_picture_that_cannot_be_decoded_is_left_out_with_the_reason(gcompris: dict[str, Any], tmp_path: Path) -> None:
    skipped = json.loads((tmp_path / "out/dataset.json").read_text())["skipped"]
    assert list(skipped) == ["lang-words-sample-broken"] and "cannot be decoded" in skipped["lang-words-sample-broken"]


def test_a_resource_file_gives_back_every_file(tmp_path: Path) -> None:
    files = {"a/b/one": b"1" * 500, "a/two": b"", "thrée": b"3"}
    (tmp_path / "all.rcc").write_bytes(rcc_bytes(files))
    assert dict(read_rcc(tmp_path / "all.rcc")) == files


@pytest.mark.parametrize("damage", [lambda data: b"zzzz" + data[4:], lambda data: data[:40], lambda data: b""])
def test_a_damaged_resource_file_is_named_in_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "bad.rcc").write_bytes(damage(rcc_bytes({"a/b": b"content" * 50})))
    with pytest.raises(SourceError) as error:
        dict(read_rcc(tmp_path / "bad.rcc"))
    assert "bad.rcc" in str(error.value) and "\n" not in str(error.value)


def test_credits_are_read_with_or_without_the_word_files() -> None:
    readme = (
        "Copyright: 2000, 2008 Bruno Coudoin and others\nLicense: CC-BY-SA 4.0\nFiles:\nz.webp\n\n"
        "Copyright: 2000, 2008 Bruno Coudoin and others\nLicense: CC-BY 4.0\na_0.webp\na_1.webp\n"
        "Comment: based on a photo by Guillaume Piolle, license CC-BY 3.0, source at https://example.org\n"
    )
    based = Credit("Bruno Coudoin and others, based on a photo by Guillaume Piolle", "CC-BY-4.0")
    expected = {"z.webp": Credit("Bruno Coudoin and others", "CC-BY-SA-4.0"), "a_0.webp": based, "a_1.webp": based}
    assert read_credits(readme) == expected


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("CC-BY-SA 4.0", "CC-BY-SA-4.0"),
        ("CC-BY 2.5", "CC-BY-2.5"),
        ("CC0-1.0", "CC0-1.0"),
        ("GPLv3 or later", "GPL-3.0-or-later"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("GPLv3", "GPL-3.0-only"),
        ("Public domain", "LicenseRef-Public-Domain"),
        ("Free Art License", "LicenseRef-Free-Art-License"),
    ],
)
def test_licences_become_spdx_identifiers(text: str, identifier: str) -> None:
    assert spdx(text) == identifier
