"""Answers of a database as cells of a contact sheet."""

from collections.abc import Mapping

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.evaluation.sheets import SheetCell


def cells_of(database: Database, hits: Hits, query: int) -> list[SheetCell]:
    """The rows that answer query number `query`, best first, with their images where the database keeps them."""
    kept = hits.ids[query] != PAD_ID
    ids, scores = hits.ids[query][kept].tolist(), hits.scores[query][kept].tolist()
    if not ids:
        return []
    cells = zip(database.rows(ids), database.images(ids), scores, strict=True)
    return [
        SheetCell(image, row.caption, score, row.licence, _note(row.fields, row.key)) for row, image, score in cells
    ]


def _note(fields: Mapping[str, str], key: str) -> str:
    """Style and artist where the source brings them, else the row's key."""
    known = [fields[name] for name in ("style", "artist") if fields.get(name)]
    return " · ".join(known) or key
