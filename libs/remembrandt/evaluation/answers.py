"""Answers of a database as cells of a contact sheet."""

from collections.abc import Mapping, Sequence

from PIL import Image

from remembrandt.data.decode import DecodeConfig, decode_image
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.databases.rows import Row
from remembrandt.evaluation.sheets import SheetCell


def cells_of(database: Database, hits: Hits, query: int) -> list[SheetCell]:
    """The rows that answer query number `query`, best first, with their images where the database keeps them."""
    kept = hits.ids[query] != PAD_ID
    found = zip(rows_with_images(database, hits.ids[query][kept]), hits.scores[query][kept].tolist(), strict=True)
    return [
        SheetCell(image, row.caption, score, row.licence, _note(row.fields, row.key)) for (row, image), score in found
    ]


def rows_with_images(database: Database, ids: Sequence[int]) -> list[tuple[Row, Image.Image | None]]:
    """Rows and their decoded images, in the order asked, by one read of the row store."""
    if len(ids) == 0:
        return []
    rows = database.rows(ids, ["key", "caption", "licence", "image", *database.manifest.fields])
    return [(row, None if row.image is None else decode_image(row.image, DecodeConfig())) for row in rows]


def _note(fields: Mapping[str, str], key: str) -> str:
    """Style and artist where the source brings them, else the row's key."""
    known = [fields[name] for name in ("style", "artist") if fields.get(name)]
    return " · ".join(known) or key
