"""`remembrandt search`: the nearest rows of a text, an image or a row, as a table, JSON or a contact sheet."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from remembrandt.cli.arguments import parse_where
from remembrandt.data.decode import DecodeConfig, decode_image
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.databases.rows import Row
from remembrandt.errors import ConfigError, SearchError
from remembrandt.evaluation.answers import cells_of
from remembrandt.evaluation.sheets import SheetRow, write_sheet


class By(StrEnum):
    """How a text query is answered."""

    clip = "clip"
    bm25 = "bm25"


def search(
    uri: Annotated[str, typer.Argument(help="Database: <root>/<name>, a path or s3://…")],
    texts: Annotated[list[str] | None, typer.Argument(help="Text queries.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image file as query; repeatable.")] = None,
    row: Annotated[list[int] | None, typer.Option(help="Row id as query; repeatable.")] = None,
    by: Annotated[By, typer.Option(help="CLIP or BM25, for text queries.")] = By.clip,
    k: Annotated[int, typer.Option("-k", help="Results a query.")] = 10,
    where: Annotated[list[str] | None, typer.Option(help="Filter column=value[,value…]; repeatable.")] = None,
    exclude_id: Annotated[list[int] | None, typer.Option(help="Row id that may not answer; repeatable.")] = None,
    exclude_group: Annotated[list[str] | None, typer.Option(help="Group that may not answer; repeatable.")] = None,
    version: Annotated[str | None, typer.Option(help="Version id; the live one if absent.")] = None,
    out: Annotated[Path | None, typer.Option(help="Contact sheet to write: .png or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Finds the rows nearest to texts, images or other rows."""
    if out is not None and out.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--out {out} must end in .png or .html")
    condition = Filter(
        equals=parse_where(where or []),
        exclude_ids=tuple(exclude_id or ()),
        exclude_groups=tuple(exclude_group or ()),
    )
    with Database.open(uri, version=version) as database:
        answers = _answers(database, texts or [], image or [], row or [], by, k, condition)
        if not answers:
            raise SearchError("nothing to search for: give a text, --image FILE or --row ID")
        results = [(title, _results(database, hits, query)) for title, _, hits, query in answers]
        if out is not None:
            _write_sheet(database, answers, out)
    if as_json:
        print(json.dumps([{"query": title, "results": [_as_json(r, s) for r, s in found]} for title, found in results]))
        return
    for title, found in results:
        print(title)
        for position, (result, score) in enumerate(found, 1):
            print(f"  {position:>2}  {score:8.4f}  {result.id:>8}  {result.key}  {result.caption}")
    if out is not None:
        print(f"wrote {out}", file=sys.stderr)


Answer = tuple[str, Image.Image | None, Hits, int]
"""Title, query image, hits of several queries, and which of them."""


def _answers(
    database: Database, texts: list[str], images: list[Path], rows: list[int], by: By, k: int, where: Filter
) -> list[Answer]:
    found: list[Answer] = []
    if texts:
        hits = database.search_texts(texts, k, where) if by is By.clip else database.search_bm25(texts, k, where)
        found += [(f"“{text}” ({by.value})", None, hits, i) for i, text in enumerate(texts)]
    if images:
        pictures = [_read_image(path) for path in images]
        hits = database.search_images(pictures, k, where)
        found += [(path.name, picture, hits, i) for i, (path, picture) in enumerate(zip(images, pictures, strict=True))]
    if rows:
        hits = database.search_ids(rows, k, where)
        shown = zip(rows, database.rows(rows, ["caption"]), database.images(rows), strict=True)
        found += [(f"row {row}: {info.caption}", picture, hits, i) for i, (row, info, picture) in enumerate(shown)]
    return found


def _results(database: Database, hits: Hits, query: int) -> list[tuple[Row, float]]:
    kept = hits.ids[query] != PAD_ID
    rows = database.rows(hits.ids[query][kept])
    return list(zip(rows, hits.scores[query][kept].tolist(), strict=True))


def _write_sheet(database: Database, answers: list[Answer], out: Path) -> None:
    rows = [SheetRow(title, picture, cells_of(database, hits, query)) for title, picture, hits, query in answers]
    write_sheet(rows, f"{database.name}, version {database.version}, {database.num_rows:,} rows", out)


def _read_image(path: Path) -> Image.Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SearchError(f"cannot read image {path}: {error.strerror}") from None
    return decode_image(data, DecodeConfig())


def _as_json(row: Row, score: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "key": row.key,
        "score": score,
        "caption": row.caption,
        "group": row.group,
        "licence": row.licence,
        "box": row.box,
        "fields": dict(row.fields),
    }
