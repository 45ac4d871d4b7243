"""Wesnoth: units from its markup language, and which unit each drawing shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.wesnoth import WesnothRecipe, expand_choices
from remembrandt.data.datasets.wml import read_tags
from remembrandt.errors import SourceError
from remembrandt.storage import open_store

ARCHER = """
#textdomain wesnoth-units
[unit_type]
    id=Elvish Archer # not "part" of it
    name= _ "female^Elvish Archer"
    race=elf
    image="units/elves/archer.png~RC(magenta>red)"
    profile="portraits/elves/scout.png"
    [attack]
        name=bow
        description=_"bow"
    [/attack]
    {DEFENSE_ANIM "units/elves/archer-defend.png" [1~3]}
    description= _ "Elves are ""patient""
hunters."
    [attack_anim]
        [frame]
            image="units/elves/archer-bow-[1~2].png:[75*2,100]"
        [/frame]
    [/attack_anim]
    [female]
        name= _ "female^Other"
        image="units/elves/archer+female.png"
    [/female]
[/unit_type]
[unit_type]
    id=Elvish Scout
    name= _ "Elvish Scout"
    race=elf
    image="units/elves/scout.png"
    profile="portraits/elves/scout.png"
    {ANIM "units/elves/archer-bow-1.png"}
[/unit_type]
[unit_type]
    id=Nameless
    image="units/elves/nameless.png"
[/unit_type]
"""
DRAWN = (
    *(
        "archer",
        "archer-defend",
        "archer-bow-1",
        "archer-bow-2",
        "archer-bow-3",
        "archer+female",
        "archer+female-bow-1",
    ),
    *("scout", "nameless", "archery"),
)


@pytest.fixture
def wesnoth(cache: Path, tmp_path: Path, read_shards: Callable[[Path], dict[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Fields by key of the data set made from a game of two units."""
    package = cache / "debian/wesnoth-1.16-data"
    core = package / "usr/share/games/wesnoth/1.16/data/core"
    (core / "units").mkdir(parents=True)
    (core / "units/elves.cfg").write_text(ARCHER)
    (package / "VERSION").write_text("1:1.16.9-1")
    for path in [*(f"units/elves/{name}" for name in DRAWN), "portraits/elves/scout"]:
        target = core / "images" / f"{path}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (12, 10), (0, 0, 0, 0))
        picture.putpixel((3, 3), (10, 120, 30, 255))
        picture.save(target)
    (core / "images/units/elves/archer-broken.png").write_bytes(b"no picture")
    prepare(WesnothRecipe(), open_store(tmp_path / "out"))
    return {key: json.loads(files["json"]) for key, files in read_shards(tmp_path / "out").items()}


def test_each_drawing_belongs_to_the_unit_that_it_shows(wesnoth: dict[str, Any]) -> None:
    owners = {key.removeprefix("core-"): row["entity"] for key, row in wesnoth.items()}
    archer = [name for name in DRAWN if name.startswith("archer") and name != "archery"]
    assert owners == {
        **{f"units-elves-{name}": "elvish-archer" for name in archer},
        "units-elves-scout": "elvish-scout",
        "portraits-elves-scout": "elvish-scout",
    }


def test_a_row_has_name_pose_race_and_description(wesnoth: dict[str, Any]) -> None:
    row = wesnoth["core-units-elves-archer+female-bow-1"]
    assert row["captions"] == [
        "Elvish Archer",
        "Elvish Archer, a sprite in pixel art",
        "Elvish Archer, female bow",
        "Elvish Archer, elf",
        'Elves are "patient" hunters.',
    ]
    assert (row["licence"], row["style"], row["category"]) == ("GPL-2.0-or-later", "sprite", "elf")
    assert wesnoth["core-portraits-elves-scout"]["style"] == "portrait"


def test_drawings_keep_their_size_over_white(
    wesnoth: dict[str, Any], tmp_path: Path, read_shards: Callable[[Path], dict[str, dict[str, bytes]]]
) -> None:
    (tmp_path / "one.png").write_bytes(read_shards(tmp_path / "out")["core-units-elves-archer"]["png"])
    picture = Image.open(tmp_path / "one.png")
    assert (picture.mode, picture.size) == ("RGB", (12, 10))
    assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((3, 3)) == (10, 120, 30)


def test_a_drawing_that_cannot_be_decoded_is_left_out_with_the_reason(wesnoth: dict[str, Any], tmp_path: Path) -> None:
    skipped = json.loads((tmp_path / "out/dataset.json").read_text())["skipped"]
    assert list(skipped) == ["core-units-elves-archer-broken"]


def test_attributes_of_inner_tags_are_not_the_units_own() -> None:
    archer, scout, nameless = read_tags(ARCHER, "unit_type")
    assert archer.attributes["name"] == "female^Elvish Archer" and "gender" not in archer.attributes
    assert archer.attributes["description"] == 'Elves are "patient"\nhunters.'
    assert archer.attributes["id"] == "Elvish Archer"
    assert "archer+female" in archer.text and "archer+female" not in scout.text
    assert "name" not in nameless.attributes


def test_choices_in_a_path_are_written_out() -> None:
    assert expand_choices("a-[1~3].png") == ["a-1.png", "a-2.png", "a-3.png"]
    assert expand_choices("a-[2,1~2,5].png") == ["a-2.png", "a-1.png", "a-5.png"]
    assert expand_choices("[1~2]-[7].png") == ["1-7.png", "2-7.png"]
    assert expand_choices("plain.png") == ["plain.png"]


def test_a_package_without_the_game_is_refused_in_one_line(cache: Path) -> None:
    (cache / "debian/wesnoth-1.16-data").mkdir(parents=True)
    (cache / "debian/wesnoth-1.16-data/VERSION").write_text("1")
    with pytest.raises(SourceError, match=r"holds no data of wesnoth-1\.16-data") as error:
        WesnothRecipe().open()
    assert "\n" not in str(error.value)
