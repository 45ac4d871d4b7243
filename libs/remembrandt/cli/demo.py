"""`remembrandt demo-sheets`: what the emoji database finds, as contact sheets and one figure (`make demo`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer

from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter
from remembrandt.evaluation.answers import cells_of, rows_with_images
from remembrandt.evaluation.sheets import SheetRow, write_sheet

K = 10
TEXTS = (
    "see-no-evil monkey",
    "a red sports car",
    "something to drink",
    "a face that laughs with tears",
    "an animal with stripes",
    "a musical instrument",
)
KEYWORDS = ("umbrella rain", "castle", "red fruit", "birthday party", "woman scientist", "high-speed train")
SWAPPED = ("crocodile", "a slice of pizza", "rocket")
NUM_HELD_OUT = 6
QUERY_STYLE = "noto"

T = TypeVar("T")


@dataclass(frozen=True)
class Drawing:
    """What the demo must know of a row."""

    id: int
    caption: str
    entity: str
    style: str
    held_out: bool


def demo_sheets(
    uri: Annotated[str, typer.Argument(help="The emoji database.")],
    out: Annotated[Path, typer.Option(help="Folder for the sheets.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Writes sheets of text, image, keyword and filtered searches; measures recall on entities held out of training."""
    with Database.open(uri) as database:
        drawings = read_drawings(database)
        unseen = _first_of_each_entity([d for d in drawings if d.held_out])
        sheets = {
            "texts": ("Words to pictures", text_rows(database, unseen)),
            "styles": ("A drawing, and the same thing by other artists", style_rows(database, drawings)),
            "keywords": ("Keywords in captions (BM25)", keyword_rows(database)),
            "swap": ("The same words, one artist at a time", swap_rows(database, drawings)),
        }
        recall = entity_recall(database, drawings, unseen)
    for name, (title, rows) in sheets.items():
        for suffix in (".png", ".html"):
            write_sheet(rows, f"{title} · {database.name}, {len(drawings):,} rows", out / f"{name}{suffix}")
    if as_json:
        print(json.dumps({"sheets": str(out), "names": list(sheets), f"recall@{K}": recall, "queries": len(unseen)}))
        return
    print(
        f"text to image recall@{K}, {len(unseen)} entities never trained on, among {len(drawings):,} rows: {recall:.3f}"
    )
    print(f"sheets: {out}/" + "{" + ",".join(sheets) + "}.{html,png}")


def read_drawings(database: Database) -> list[Drawing]:
    """All rows, by id."""
    columns = ("id", "caption", "entity", "style", "split")
    rows = database.dataset.to_table(columns=list(columns)).to_pylist()
    return [Drawing(r["id"], r["caption"], r["entity"], r["style"], r["split"] == "held-out") for r in rows]


def text_rows(database: Database, unseen: Sequence[Drawing]) -> list[SheetRow]:
    """Free texts, then labels of entities that the encoder has never seen."""
    texts = [*TEXTS, *(drawing.caption for drawing in spread(unseen, NUM_HELD_OUT))]
    hits = database.search_texts(texts, K)
    titles = [f"“{text}”" + (" (never trained on)" if i >= len(TEXTS) else "") for i, text in enumerate(texts)]
    return [SheetRow(title, None, cells_of(database, hits, i)) for i, title in enumerate(titles)]


def style_rows(database: Database, drawings: Sequence[Drawing]) -> list[SheetRow]:
    """Drawings of unseen entities by one artist; only the other artists' drawings may answer."""
    queries = spread([d for d in drawings if d.held_out and d.style == QUERY_STYLE], 2 * NUM_HELD_OUT)
    others = tuple(sorted({d.style for d in drawings} - {QUERY_STYLE}))
    hits = database.search_ids([d.id for d in queries], K, Filter(equals={"style": others}))
    shown = rows_with_images(database, [d.id for d in queries])
    return [
        SheetRow(f"{drawing.caption} ({drawing.style})", image, cells_of(database, hits, i))
        for i, (drawing, (_, image)) in enumerate(zip(queries, shown, strict=True))
    ]


def keyword_rows(database: Database) -> list[SheetRow]:
    """BM25 over captions and keywords."""
    hits = database.search_bm25(KEYWORDS, K)
    return [SheetRow(f"“{text}”", None, cells_of(database, hits, i)) for i, text in enumerate(KEYWORDS)]


def swap_rows(database: Database, drawings: Sequence[Drawing]) -> list[SheetRow]:
    """The same texts, answered by each style alone."""
    rows = []
    for style in sorted({d.style for d in drawings}):
        hits = database.search_texts(SWAPPED, 3, Filter(equals={"style": (style,)}))
        cells = [cell for i in range(len(SWAPPED)) for cell in cells_of(database, hits, i)]
        rows.append(SheetRow(f"{style}: {', '.join(SWAPPED)}", None, cells))
    return rows


def entity_recall(database: Database, drawings: Sequence[Drawing], queries: Sequence[Drawing]) -> float:
    """Share of the queries' captions that find at least one drawing of their entity among the first K of all rows."""
    entities = np.array([d.entity for d in drawings])
    hits = database.search_texts([d.caption for d in queries], K)
    return float(np.mean([d.entity in entities[hits.ids[i]] for i, d in enumerate(queries)]))


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items at even distances, or all if there are fewer."""
    positions = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(position)] for position in positions]


def _first_of_each_entity(drawings: Sequence[Drawing]) -> list[Drawing]:
    return list({drawing.entity: drawing for drawing in reversed(drawings)}.values())[::-1]
