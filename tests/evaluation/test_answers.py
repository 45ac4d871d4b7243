"""Answers of a real database as cells of a sheet."""

import numpy as np
import pytest

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.evaluation.answers import cells_of, rows_with_images


@pytest.mark.ray
def test_cells_show_the_rows_that_answer_in_their_order_and_leave_out_padding(emoji_like_database: str) -> None:
    with Database.open(emoji_like_database) as database:
        hits = Hits(
            np.array([[7, 3, PAD_ID], [PAD_ID] * 3]), np.array([[0.9, 0.5, -np.inf], [-np.inf] * 3], np.float32)
        )
        cells = cells_of(database, hits, 0)
        rows = database.rows([7, 3])
        assert [cell.caption for cell in cells] == [row.caption for row in rows]
        assert [cell.licence for cell in cells] == [row.licence for row in rows]
        assert [cell.note for cell in cells] == [row.fields["style"] for row in rows]
        assert [cell.score for cell in cells] == pytest.approx([0.9, 0.5])
        assert cells_of(database, hits, 1) == []


@pytest.mark.ray
def test_images_belong_to_the_rows_that_they_come_with(emoji_like_database: str) -> None:
    with Database.open(emoji_like_database) as database:
        for row, image in rows_with_images(database, [5, 200, 5]):
            (alone,) = database.images([row.id])
            assert image is not None
            assert alone is not None
            assert image.tobytes() == alone.tobytes()
