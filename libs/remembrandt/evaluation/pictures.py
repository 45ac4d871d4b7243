"""Sheets of generated pictures beside what they were painted from."""

import io
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.evaluation.sheets import SheetCell, SheetRow, render_html
from remembrandt.generation.job import read_pictures
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.generation.requests import DatabaseRef
from remembrandt.storage import open_store

_MOST_ROWS = 200


def picture_rows(
    pictures: Sequence[tuple[Image.Image, Record]], images_of: Callable[[Record], Sequence[Image.Image | None]]
) -> list[SheetRow]:
    """A row for all pictures of equal model, text, strategy, database and neighbours: the neighbours, then samples."""
    rows: dict[tuple[str, tuple[int | None, ...]], list[tuple[Image.Image, Record]]] = {}
    several = len({record.model for _, record in pictures}) > 1
    for image, record in pictures:
        title = f"{record.model} · {title_of(record)}" if several else title_of(record)
        rows.setdefault((title, tuple(n.id for n in record.neighbors)), []).append((image, record))
    return [
        SheetRow(title, None, [*_neighbor_cells(found[0][1], images_of(found[0][1])), *map(_sample_cell, found)])
        for (title, _), found in rows.items()
    ]


def title_of(record: Record) -> str:
    """What a picture was asked for by."""
    start = f"“{record.text}” · " if record.text else ""
    part = ", ".join(f"{column} {'/'.join(values)}" for column, values in record.where.items())
    database = f" · {record.database}" + (f" ({part})" if part else "") if record.database else ""
    top_m = f", top-m {record.strategy['top_m']:g}" if "top_m" in record.strategy else ""
    found = f"{record.strategy['name']}{top_m}" if record.neighbors else "no neighbours"
    return f"{start}{found}, s = {record.guidance_scale:g}{database}"


def images_in(database: Database) -> Callable[[Record], list[Image.Image | None]]:
    """Pictures of a record's neighbours; None for an item that is no row."""

    def images_of(record: Record) -> list[Image.Image | None]:
        rows = iter(database.images([n.id for n in record.neighbors if n.id is not None]))
        return [next(rows) if n.id is not None else None for n in record.neighbors]

    return images_of


def sheet_of_run(out: str, refs: Iterable[DatabaseRef]) -> str:
    """The HTML page of a finished `jobs/sample.py`, at most 200 pictures; `refs` are the databases it painted from."""
    store = open_store(out)
    databases = {(d.name, d.version): d for d in (Database.open(ref.uri, version=ref.version) for ref in refs)}

    def images_of(record: Record) -> Sequence[Image.Image | None]:
        database = databases.get((record.database or "", record.version or ""))
        return [None] * len(record.neighbors) if database is None else images_in(database)(record)

    drawn = [
        (Image.open(io.BytesIO(store.read(path))).convert("RGB"), record)
        for path, record in read_pictures(out)[:_MOST_ROWS]
    ]
    return render_html(picture_rows(drawn, images_of), f"Samples · {out}")


def _sample_cell(picture: tuple[Image.Image, Record]) -> SheetCell:
    image, record = picture
    return SheetCell(image, "sample", note=f"seed {record.seed}")


def _neighbor_cells(record: Record, images: Sequence[Image.Image | None]) -> list[SheetCell]:
    return [
        SheetCell(image, neighbor.caption or "the text itself", neighbor.score, neighbor.licence, _note(neighbor))
        for neighbor, image in zip(record.neighbors, images, strict=True)
    ]


def _note(neighbor: NeighborRecord) -> str:
    fields = neighbor.fields or {}
    return " · ".join(fields[name] for name in ("style", "artist") if fields.get(name)) or neighbor.key
