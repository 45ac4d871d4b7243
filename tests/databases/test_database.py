"""Search by every kind of query, filters, and answers that name what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter
from remembrandt.databases.rows import take_rows
from remembrandt.encoders import EncoderConfig
from remembrandt.encoders.base import normalise
from remembrandt.errors import EncoderMismatchError, SearchError, VersionError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def database(emoji_like_database: str) -> Database:
    return Database.open(emoji_like_database)


def exact(database: Database, queries_BD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    scores = normalise(queries_BD) @ normalise(database.embeddings(range(len(database)))).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.take_along_axis(scores, np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)


def test_embeddings_find_their_exact_neighbours_whatever_their_norm(database: Database) -> None:
    queries = database.embeddings(range(0, 320, 16)) * 7.5
    hits = database.search_embeddings(queries, 10)
    np.testing.assert_allclose(hits.scores, exact(database, queries, 10), atol=1e-5)
    assert hits.ids.dtype == np.int64 and hits.scores.dtype == np.float32


def test_an_image_finds_itself(database: Database, pictures: Path) -> None:
    image = Image.open(pictures / "outline" / "blue-moon.png").convert("RGB")
    hits = database.search_images([image], 1)
    assert database.rows(hits.ids[0])[0].key == "outline/blue-moon.png"
    assert hits.scores[0, 0] > 0.9999


def test_texts_are_embedded_by_the_database_s_encoder(database: Database) -> None:
    hits = database.search_texts(["a red star", "a moon"], 5)
    embedded = database.encoder.encode_texts(["a red star", "a moon"])
    np.testing.assert_array_equal(hits.ids, database.search_embeddings(embedded, 5).ids)


def test_a_row_is_not_its_own_neighbour(database: Database) -> None:
    hits = database.search_ids([3, 200], 8)
    assert hits.ids.shape == (2, 8) and not (hits.ids == [[3], [200]]).any() and (hits.ids != PAD_ID).all()


def test_bm25_finds_words_and_pads_what_does_not_match(database: Database) -> None:
    hits = database.search_bm25(["purple arrow", "zebra"], 60)
    best = database.rows(hits.ids[0, :4])
    assert {row.caption for row in best} == {"purple arrow"}
    assert (hits.ids[1] == PAD_ID).all() and np.isneginf(hits.scores[1]).all()


def test_filters_narrow_every_kind_of_search(database: Database) -> None:
    where = Filter(
        equals={"style": ("outline", "small"), "licence": ("MIT",)}, exclude_groups=("red-star",), exclude_ids=(90,)
    )
    for hits in (
        database.search_embeddings(database.embeddings([85]), 79, where),
        database.search_bm25(["red star"], 79, where),
    ):
        found = database.rows(hits.ids[0][hits.ids[0] != PAD_ID])
        assert found and all(r.fields["style"] == "outline" and r.group != "red-star" and r.id != 90 for r in found)
    assert (database.search_embeddings(database.embeddings([85]), 79, where).ids[0] != PAD_ID).sum() == 78


def test_filtered_search_is_exact_over_the_allowed_rows(database: Database) -> None:
    allowed = np.array([row.fields["style"] == "small" for row in database.rows(range(320))])
    queries = database.embeddings([0, 100, 300])
    hits = database.search_embeddings(queries, 12, Filter(equals={"style": ("small",)}))
    np.testing.assert_allclose(hits.scores, exact(database, queries, 12, allowed), atol=1e-5)


def test_quotes_in_filters_are_values(database: Database) -> None:
    assert (database.search_ids([0], 3, Filter(equals={"style": ("x' OR '1'='1",)})).ids == PAD_ID).all()


def test_rows_come_in_the_order_asked_with_everything_known(database: Database) -> None:
    rows = database.rows([7, 3, 7])
    assert [row.id for row in rows] == [7, 3, 7]
    row = database.rows([0], ["key", "caption", "captions", "image", "group", "licence", "style", "width"])[0]
    assert row.key == "filled/black-arrow.png" and row.caption == "black arrow" and row.group == "black-arrow"
    assert row.captions == ("a filled black arrow", "arrow, black") and row.licence == "Apache-2.0"
    assert row.fields["style"] == "filled" and row.width == 48 and row.image is not None and row.image[:4] == b"\x89PNG"


def test_texts_are_those_of_the_row_store_whether_they_are_kept_close_or_not(
    emoji_like_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, columns = [319, 0, 7, 160, 159, 7], ["key", "caption", "group", "licence", "style"]
    with Database.open(emoji_like_database) as opened:
        expected = take_rows(opened.dataset, asked, columns, opened.manifest.fields)
        fragments = len(opened.dataset.get_fragments())
    assert fragments > 1, "rows of several pieces"
    for limit, kept in (("0", 0), ("1", 1)):
        monkeypatch.setenv("REMEMBRANDT_CACHE", str(tmp_path / limit))
        monkeypatch.setenv("REMEMBRANDT_TEXT_CACHE_GB", limit)
        with Database.open(emoji_like_database) as opened:
            assert opened.rows(asked, columns) == expected
            assert opened.rows([], columns) == []
            assert [row.caption for row in opened.rows([5], ["caption"])] == [opened.rows([5])[0].caption]
        assert len(list((tmp_path / limit).glob("texts/*.arrow"))) == kept
    monkeypatch.setenv("REMEMBRANDT_CACHE", str(tmp_path / "full"))
    with Database.open(emoji_like_database) as opened:
        (tmp_path / "full" / "texts").write_text("no folder")
        assert opened.rows(asked, columns) == expected


def test_raw_embeddings_are_not_normalised(database: Database) -> None:
    norms = np.linalg.norm(database.embeddings(range(20)), axis=1)
    assert norms.std() > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.search_ids([0], 320), r"k = 320 is not possible: .* has 320 rows; ask for 1 to 319"),
        (lambda d: d.search_embeddings(np.zeros((1, 64)), 0), r"k = 0 is not possible"),
        (
            lambda d: d.search_embeddings(np.zeros((1, 65)), 1),
            "queries have 65 dimensions, and database 'drawings' has 64",
        ),
        (lambda d: d.rows([320]), "there is no row 320"),
        (lambda d: d.embeddings([-1]), "there is no row -1"),
        (lambda d: d.rows([0], ["stile"]), "no column 'stile': did you mean 'style'"),
        (
            lambda d: d.search_ids([0], 1, Filter(equals={"stlye": ("a",)})),
            "cannot be filtered by 'stlye': did you mean 'style'",
        ),
        (lambda d: d.proposal(), "has no proposal: run jobs/precompute_neighbors.py"),
    ],
)
def test_impossible_questions_are_answered_with_what_is_possible(
    database: Database, call: object, message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        call(database)  # type: ignore[operator]


def test_a_wrong_encoder_is_refused_and_both_are_named(
    emoji_like_database: str, tiny_clip: Path, tmp_path: Path
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    weights = load_file(other / "open_clip_model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + torch.tensor(1.0)
    save_file(weights, other / "open_clip_model.safetensors")
    with pytest.raises(
        EncoderMismatchError, match=r"was embedded with vit 64x2/8 .*\[\w{12}, .*\], not with vit 64x2/8"
    ):
        Database.open(emoji_like_database, encoder=EncoderConfig(model=str(other)))
    Database.open(emoji_like_database, encoder=EncoderConfig(model=str(tiny_clip))).close()


def test_absent_databases_and_versions_are_named(emoji_like_database: str, tmp_path: Path) -> None:
    with pytest.raises(VersionError, match=r"no database is published at .*nowhere"):
        Database.open(str(tmp_path / "nowhere"))
    with pytest.raises(VersionError, match=r"version 'v9' of .* does not exist"):
        Database.open(emoji_like_database, version="v9")
