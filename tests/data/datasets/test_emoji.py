"""The emoji data set: what is drawn, what is said about it, how styles are joined to entities."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remembrandt.data.datasets.emoji.drawings import join_names
from remembrandt.data.datasets.emoji.entities import normal_code, read_entities
from remembrandt.data.datasets.emoji.recipe import EmojiRecipe
from remembrandt.data.datasets.emoji.styles import EMOJIBASE, EMOJILIB, STYLES
from remembrandt.data.datasets.packages import npm_package
from remembrandt.data.datasets.prepare import prepare
from remembrandt.data.datasets.splits import split_of
from remembrandt.data.sources import open_source
from remembrandt.data.sources.webdataset import WebdatasetConfig
from remembrandt.errors import ConfigError, SourceError
from remembrandt.storage import open_store

STYLES_HERE = ("noto", "fxemoji", "openmoji", "fluent-3d")
Shards = dict[str, dict[str, bytes]]


@pytest.fixture
def emoji(emoji_packages: Path, tmp_path: Path, read_shards: Callable[[Path], Shards]) -> Shards:
    """The prepared data set by key, in all four styles."""
    prepare(EmojiRecipe(styles=STYLES_HERE, size=32), open_store(tmp_path / "emoji"))
    return read_shards(tmp_path / "emoji")


def fields_of(shards: Shards, key: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(shards[key]["json"])
    return fields


def pixels_of(shards: Shards, key: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shards[key]["png"])).convert("RGB"))


def test_every_style_that_draws_an_entity_gives_a_row(emoji: Shards) -> None:
    monkeys = {key for key in emoji if key.startswith("1f648_")}
    assert monkeys == {"1f648_noto", "1f648_fxemoji", "1f648_openmoji", "1f648_fluent-3d"}


def test_a_row_says_what_it_shows_who_drew_it_and_under_which_licence(emoji: Shards) -> None:
    fields = fields_of(emoji, "1f648_noto")
    expected = {
        "caption": "see-no-evil monkey",
        "entity": "see-no-evil-monkey",
        "group": "see-no-evil-monkey",
        "category": "animals & nature",
        "style": "noto",
        "artist": "Google Inc",
        "licence": "Apache-2.0",
        "source": "npm:@iconify-json/noto@1.2.9",
        "width": 32,
    }
    assert {name: fields[name] for name in expected} == expected
    assert emoji["1f648_noto"]["txt"] == b"see-no-evil monkey"


def test_captions_hold_label_style_keywords_and_shortcodes_once_each(emoji: Shards) -> None:
    assert fields_of(emoji, "1f648_noto")["captions"] == [
        "see-no-evil monkey",
        "see-no-evil monkey, a Noto emoji by Google",
        "see-no-evil monkey, evil, monkey",
        "see no evil monkey, haha",
        "see no evil",
    ]


def test_a_drawing_with_an_author_of_its_own_names_him(emoji: Shards) -> None:
    assert fields_of(emoji, "1f648_openmoji")["artist"] == "Ada L., OpenMoji"
    assert fields_of(emoji, "1f408_openmoji")["artist"] == "OpenMoji"


def test_drawings_are_flattened_over_white(emoji: Shards) -> None:
    image = Image.open(io.BytesIO(emoji["1f648_noto"]["png"]))
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert image.getpixel((31, 31)) == (255, 255, 255)
    assert image.getpixel((8, 16)) == (165, 42, 42)


def test_a_flipped_alias_is_the_mirror_image(emoji: Shards) -> None:
    plain, mirrored = pixels_of(emoji, "1f431_noto"), pixels_of(emoji, "1f408_noto")
    assert (plain[:, 4:16] < 200).all(axis=2).any() and not (plain[:, 17:] < 200).any()
    assert (mirrored[:, 17:28] < 200).any() and not (mirrored[:, :15] < 200).any()


def test_an_alias_with_an_unknown_transformation_is_not_drawn(emoji: Shards) -> None:
    assert "1f3dd_noto" in emoji and "1f3dd_fxemoji" not in emoji


def test_a_drawing_that_is_not_square_is_centred_and_whole(emoji: Shards) -> None:
    rows = np.flatnonzero((pixels_of(emoji, "1f648_fluent-3d") < 250).any(axis=(1, 2)))
    assert (rows.min(), rows.max()) == (8, 23)


def test_what_cannot_be_seen_or_decoded_is_left_out_with_the_reason(emoji_packages: Path, tmp_path: Path) -> None:
    summary = prepare(EmojiRecipe(styles=STYLES_HERE, size=32), open_store(tmp_path / "emoji"))
    assert summary["skipped"]["1f32b_noto"] == "nothing can be seen on white"
    assert "cannot be decoded" in summary["skipped"]["1f408_fluent-3d"]
    assert summary["rows"] == sum(summary["styles"].values()) == sum(summary["splits"].values())


def test_icons_that_show_something_else_today_are_left_out(emoji: Shards) -> None:
    assert "pistol" in STYLES["fxemoji"].misnamed
    assert not [key for key in emoji if key.startswith("1f52b_")]


def test_line_drawings_do_not_stand_for_what_only_colour_tells_apart(emoji_packages: Path) -> None:
    assert EmojiRecipe(styles=("openmoji-black",)).open().keys == ("1f648_openmoji-black",)


def test_without_a_code_table_a_label_wins_over_a_shortcode(emoji_packages: Path) -> None:
    entities = read_entities(npm_package(*EMOJIBASE), npm_package(*EMOJILIB))
    assert join_names(["cat", "pointup2", "seenoevil"], entities.values()) == {
        "1f408": "cat",
        "1f446": "pointup2",
        "1f648": "seenoevil",
    }


def test_skin_tones_come_only_when_asked_for_and_stay_with_their_entity(
    emoji_packages: Path, tmp_path: Path, read_shards: Callable[[Path], Shards]
) -> None:
    for variants in (False, True):
        out = tmp_path / str(variants)
        prepare(EmojiRecipe(styles=("noto",), size=32, variants=variants), open_store(out))
        assert ("1f446-1f3fb_noto" in read_shards(out)) is variants
    toned = fields_of(read_shards(tmp_path / "True"), "1f446-1f3fb_noto")
    plain = fields_of(read_shards(tmp_path / "True"), "1f446_noto")
    assert toned["entity"] != plain["entity"]
    assert [toned[name] for name in ("group", "base", "split")] == [plain[name] for name in ("group", "base", "split")]


def test_man_woman_and_person_of_one_trade_share_base_and_split(emoji: Shards) -> None:
    trades = [fields_of(emoji, f"{first}-200d-1f3a8_noto") for first in ("1f9d1", "1f468", "1f469")]
    assert {row["base"] for row in trades} == {"artist"}
    assert len({row["split"] for row in trades}) == 1
    assert len({row["entity"] for row in trades}) == 3


def test_a_limit_takes_the_same_first_entities_whatever_it_is(emoji_packages: Path) -> None:
    keys = [set(EmojiRecipe(styles=STYLES_HERE, limit=limit).open().keys) for limit in (3, 7, None)]
    assert [len(some) for some in keys[:2]] == [3, 7]
    assert keys[0] < keys[1] < keys[2]


def test_a_package_under_another_licence_than_we_know_is_refused(
    emoji_packages: Path, add_style: Callable[..., None]
) -> None:
    add_style("noto", {}, licence="CC-BY-NC-4.0")
    with pytest.raises(SourceError, match=r"states the licence CC-BY-NC-4\.0, not Apache-2\.0") as error:
        EmojiRecipe(styles=("noto",)).open()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": ("twemojy",)}, "unknown emoji style 'twemojy': did you mean 'twemoji'?"),
        ({"styles": ()}, "no emoji style is chosen"),
        ({"size": 4}, "the size of an emoji must be 16 to 1024 pixels, not 4"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmojiRecipe(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_webdataset_source_reads_what_was_prepared(emoji: Shards, tmp_path: Path) -> None:
    source = open_source(WebdatasetConfig(uri=str(tmp_path / "emoji")))
    records = {record.key: record for block in source.blocks(100) for record in source.read(block)}
    assert set(records) == set(emoji)
    record = records["1f648_openmoji"]
    assert (record.caption, record.group, record.licence) == (
        "see-no-evil monkey",
        "see-no-evil-monkey",
        "CC-BY-SA-4.0",
    )
    assert record.fields["style"] == "openmoji" and "see no evil" in record.captions


def test_codes_are_compared_without_case_zeros_and_variation_selectors() -> None:
    assert normal_code("0023-FE0F-20E3") == normal_code("23_20e3") == "23-20e3"


def test_the_split_depends_on_the_name_alone() -> None:
    held_out = [
        name for name in ("artist", "bell", "cat", "dog", "fog", "guitar", "tree") if split_of(name, "emoji") != "train"
    ]
    assert held_out == ["dog", "tree"]
    share = sum(split_of(f"entity-{number}", "emoji") == "held-out" for number in range(5000)) / 5000
    assert 0.08 < share < 0.12
