"""Contact sheets, as pixels and as a page."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from remembrandt.evaluation.sheets import (
    COLUMNS,
    SheetCell,
    SheetRow,
    format_score,
    render_html,
    render_png,
    write_sheet,
)

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def tile(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(number for number, found in sheet.getcolors(1 << 24) if found == colour)


@pytest.fixture
def rows() -> list[SheetRow]:
    cells = [
        SheetCell(tile(GREEN), "a <green> tile", 0.91, "CC-BY-4.0", "noto · Google"),
        SheetCell(tile(BLUE, (120, 30)), "a wide blue tile", 0.5, "MIT", "fluent-flat"),
        SheetCell(None, "a text", 12.345),
    ]
    return [SheetRow("red.png", tile(RED), cells), SheetRow("nothing like it")]


def test_a_picture_shows_the_query_and_every_answer_at_the_same_size(rows: list[SheetRow]) -> None:
    sheet = render_png(rows, "Tiles")
    assert count(sheet, RED) == count(sheet, GREEN) > 100 * 100


def test_a_picture_keeps_the_shape_of_what_it_shows(rows: list[SheetRow]) -> None:
    sheet = render_png(rows, "Tiles")
    assert count(sheet, BLUE) == pytest.approx(count(sheet, GREEN) / 4, rel=0.05)


def test_more_answers_than_columns_go_on_a_second_line() -> None:
    def sheet(answers: int) -> Image.Image:
        return render_png([SheetRow("q", None, [SheetCell(tile(GREEN), "")] * answers)], "t")

    full, over = sheet(COLUMNS), sheet(COLUMNS + 1)
    assert over.width == full.width
    assert over.height > full.height
    assert count(over, GREEN) == count(sheet(1), GREEN) * (COLUMNS + 1)


def test_captions_of_any_length_and_script_can_be_drawn() -> None:
    captions = ["", "word " * 100, "x" * 500, "看不见的猴子 🙈", "line\nbreak"]
    sheet = render_png([SheetRow(c, None, [SheetCell(tile(GREEN), c, 1.0, c, c)]) for c in captions], captions[1])
    assert count(sheet, GREEN) > 0


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attributes)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_captions_scores_licences_and_notes_as_they_are(rows: list[SheetRow]) -> None:
    page = _Page(render_html(rows, "Tiles & more"))
    for text in ("Tiles & more", "a <green> tile", "0.910", "12.3", "CC-BY-4.0", "noto · Google", "nothing found"):
        assert text in page.text


def test_a_page_needs_nothing_from_outside(rows: list[SheetRow]) -> None:
    text = render_html(rows, "Tiles")
    images = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in _Page(text).images]
    assert [image.size for image in images] == [(64, 64), (64, 64), (120, 30)]
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", text)


@pytest.mark.parametrize(
    ("score", "text"), [(0.8251, "0.825"), (-0.1, "-0.100"), (1.0, "1.000"), (9.26, "9.3"), (17.0, "17.0")]
)
def test_scores_are_as_precise_as_their_kind(score: float, text: str) -> None:
    assert format_score(score) == text


def test_a_sheet_is_written_in_the_format_of_its_name(rows: list[SheetRow], tmp_path: Path) -> None:
    write_sheet(rows, "Tiles", tmp_path / "new" / "sheet.html")
    write_sheet(rows, "Tiles", tmp_path / "new" / "sheet.png")
    assert (tmp_path / "new" / "sheet.html").read_text().startswith("<!doctype html>")
    assert Image.open(tmp_path / "new" / "sheet.png").format == "PNG"
