"""Contact sheets: queries with the rows that answer them, as one PNG or one self-contained HTML page."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont

THUMBNAIL = 132
COLUMNS = 10

_MARGIN, _GAP, _PADDING = 32, 12, 6
_TITLE, _HEADING, _CAPTION, _SMALL = 28, 19, 13, 12
_LINE = 1.3
_CAPTION_LINES = 2
_PAPER, _CARD, _EDGE, _INK, _MUTED, _ACCENT = "#f6f5f1", "#ffffff", "#dedcd4", "#1d1d1b", "#6d6b64", "#9c3d1f"


@dataclass(frozen=True)
class SheetCell:
    """One answer. `score` is a cosine similarity or BM25 score, `note` a short free text (style, artist, key)."""

    image: Image.Image | None
    caption: str
    score: float | None = None
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class SheetRow:
    """One query and its answers, best first."""

    title: str
    query_image: Image.Image | None = None
    cells: Sequence[SheetCell] = field(default_factory=tuple)


def render_png(rows: Sequence[SheetRow], title: str) -> Image.Image:
    """Draws the sheet, at most ten answers a line; RGB.

    A query image stands left of its answers, set apart by a line. Pillow's own font is used, which has Latin letters
    only; a page (`render_html`) shows every script.
    """
    columns = max((min(len(row.cells), COLUMNS) + (row.query_image is not None) for row in rows), default=1)
    width = max(2 * _MARGIN + columns * (THUMBNAIL + _GAP) + _GAP, 560)
    height = _MARGIN + _TITLE_HEIGHT + sum(_row_height(row) for row in rows) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN), title, _TITLE, _INK, width - 2 * _MARGIN)
    top = _MARGIN + _TITLE_HEIGHT
    for row in rows:
        _draw_row(sheet, draw, row, top, width)
        top += _row_height(row)
    return sheet


def render_html(rows: Sequence[SheetRow], title: str) -> str:
    """The sheet as one HTML page with all images inside, for screens from a phone up, light or dark."""
    body = "\n".join(_html_row(row) for row in rows)
    page = Template(resources.files(__package__).joinpath("sheet.html").read_text(encoding="utf-8"))
    return page.substitute(title=html.escape(title), body=body)


def write_sheet(rows: Sequence[SheetRow], title: str, target: Path) -> None:
    """Writes an `.html` page or, for any other suffix, a picture."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix.lower() == ".html":
        target.write_text(render_html(rows, title), encoding="utf-8")
    else:
        render_png(rows, title).save(target)


def format_score(score: float) -> str:
    """Three digits after the point for a cosine similarity, one for a (larger) BM25 score."""
    return f"{score:.3f}" if abs(score) <= 1 else f"{score:.1f}"


_TITLE_HEIGHT, _HEADING_HEIGHT = round(_TITLE * 1.9), round(_HEADING * 1.7)
_CAPTION_HEIGHT, _SMALL_HEIGHT = round(_CAPTION * _LINE), round(_SMALL * _LINE)
_CELL_HEIGHT = THUMBNAIL + _CAPTION_LINES * _CAPTION_HEIGHT + 3 * _SMALL_HEIGHT + 3 * _PADDING


def _row_height(row: SheetRow) -> int:
    lines = -(-len(row.cells) // COLUMNS)
    if lines == 0:
        return _HEADING_HEIGHT + (THUMBNAIL if row.query_image is not None else 2 * _CAPTION_HEIGHT) + 2 * _GAP
    return _HEADING_HEIGHT + lines * (_CELL_HEIGHT + _GAP) + _GAP


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, top: int, width: int) -> None:
    _text(draw, (_MARGIN, top), row.title, _HEADING, _INK, width - 2 * _MARGIN)
    top += _HEADING_HEIGHT
    left = _MARGIN
    if row.query_image is not None:
        _paste(sheet, row.query_image, left, top, _ACCENT)
        left += THUMBNAIL + 2 * _GAP
        draw.line([(left - _GAP, top), (left - _GAP, top + THUMBNAIL)], fill=_EDGE, width=2)
    if not row.cells:
        _text(draw, (left, top + _PADDING), "nothing found", _CAPTION, _MUTED, THUMBNAIL * 2)
    for position, cell in enumerate(row.cells):
        line, column = divmod(position, COLUMNS)
        _draw_cell(sheet, draw, cell, left + column * (THUMBNAIL + _GAP), top + line * (_CELL_HEIGHT + _GAP))


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: SheetCell, left: int, top: int) -> None:
    if cell.image is None:
        _box(draw, left, top, _EDGE)
        _text(draw, (left + _PADDING, top + THUMBNAIL // 2), "no image", _SMALL, _MUTED, THUMBNAIL)
    else:
        _paste(sheet, cell.image, left, top, _EDGE)
    y = top + THUMBNAIL + _PADDING + 2
    for text in _wrap(cell.caption, _CAPTION, THUMBNAIL, _CAPTION_LINES):
        draw.text((left, y), text, _INK, _font(_CAPTION))
        y += _CAPTION_HEIGHT
    if cell.score is not None:
        draw.text((left, y), format_score(cell.score), _ACCENT, _font(_SMALL))
        y += _SMALL_HEIGHT
    for text in filter(None, (cell.note, cell.licence)):
        _text(draw, (left, y), text, _SMALL, _MUTED, THUMBNAIL)
        y += _SMALL_HEIGHT


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int, edge: str) -> None:
    _box(ImageDraw.Draw(sheet), left, top, edge)
    inner = THUMBNAIL - 2 * _PADDING
    small = _fit(image, inner)
    sheet.paste(small, (left + (THUMBNAIL - small.width) // 2, top + _PADDING + (inner - small.height) // 2))


def _box(draw: ImageDraw.ImageDraw, left: int, top: int, edge: str) -> None:
    draw.rounded_rectangle(
        (left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), radius=8, fill=_CARD, outline=edge, width=1
    )


def _fit(image: Image.Image, edge: int) -> Image.Image:
    """Scaled to fit into a square of `edge` pixels, its shape kept; RGB."""
    scale = edge / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int) -> None:
    for line in _wrap(text, size, width, 1):
        draw.text(at, line, colour, _font(size))


def _wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Breaks at spaces into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    words = text.split()
    found: list[str] = []
    while words and len(found) < lines:
        line = words.pop(0)
        while words and _length(f"{line} {words[0]}", size) <= width:
            line = f"{line} {words.pop(0)}"
        last = len(found) == lines - 1 and words
        found.append(_shorten(f"{line} …" if last else line, size, width))
    return found


def _shorten(text: str, size: int, width: int) -> str:
    if _length(text, size) <= width:
        return text
    kept = text.removesuffix(" …")
    while kept and _length(f"{kept}…", size) > width:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


def _length(text: str, size: int) -> float:
    return _font(size).getlength(text)


def _html_row(row: SheetRow) -> str:
    query = ""
    if row.query_image is not None:
        picture = f'<img src="{data_uri(row.query_image)}" alt="query">'
        query = f'<figure class="query">{picture}<figcaption>query</figcaption></figure>'
    cells = "".join(_html_cell(cell) for cell in row.cells) or '<p class="empty">nothing found</p>'
    return f'<section><h2>{html.escape(row.title)}</h2><div class="cells">{query}{cells}</div></section>'


def _html_cell(cell: SheetCell) -> str:
    caption = html.escape(cell.caption)
    picture = '<div class="none">no image</div>'
    if cell.image is not None:
        picture = f'<img src="{data_uri(cell.image)}" alt="{caption}" loading="lazy">'
    score = "" if cell.score is None else f"<b>{format_score(cell.score)}</b> "
    small = f"<small>{score}{html.escape(' · '.join(filter(None, (cell.note, cell.licence))))}</small>"
    return f'<figure>{picture}<figcaption title="{caption}"><span>{caption}</span>{small}</figcaption></figure>'


def data_uri(image: Image.Image, edge: int = 2 * THUMBNAIL) -> str:
    """A picture inside a page, at most `edge` large."""
    small = image.convert("RGB") if max(image.size) <= edge else _fit(image, edge)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
