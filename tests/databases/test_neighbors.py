"""Who is a neighbour and who is not, what is stored of it, and that it is found the same however the work is spread."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from remembrandt.configuration import parse_config
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Filter, Hits, Where
from remembrandt.databases.neighbor_search import ExclusionConfig, Identities, NeighborFinder, QueryBatch, SameConfig
from remembrandt.databases.neighbors import (
    DatabaseRowsConfig,
    Neighbors,
    NeighborSearchConfig,
    PrecomputeConfig,
    Queries,
    compute_neighbors,
    precompute_neighbors,
)
from remembrandt.errors import (
    ConfigError,
    CorruptionError,
    EncoderMismatchError,
    RemembrandtError,
    SearchError,
    SourceError,
    VersionError,
)
from remembrandt.storage import open_store
from tests.support.exact_searcher import ExactSearcher


class NarrowSearcher(ExactSearcher):
    """Approximate as an inverted file that visits too few lists: three rows in four are never looked at."""

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        assert isinstance(where, Filter | None)
        excluded = {*(where.exclude_ids if where else ()), *(n for n in range(self.num_rows) if n % 4)}
        return super().search_embeddings(queries_BD, k, Filter(exclude_ids=tuple(excluded)))


def wanted(scores: NDArray[Any], rows: NDArray[Any], query: NDArray[Any], columns: list[int], k: int) -> list[int]:
    """The definition: all rows, without those that share image, group or content, best first."""
    allowed = [n for n in range(len(rows)) if not any(rows[n][c] == query[c] for c in columns)]
    ranked = sorted((n for n in allowed if np.isfinite(scores[n])), key=lambda n: (-scores[n], n))[:k]
    return ranked + [PAD_ID] * (k - len(ranked))


@pytest.mark.parametrize("searcher_class", [ExactSearcher, NarrowSearcher])
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(max_examples=30, deadline=None)
def test_neighbours_are_the_best_rows_that_are_not_excluded_and_as_many_as_there_are(
    searcher_class: type[ExactSearcher], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    count = data.draw(st.integers(2, 120))
    k = data.draw(st.integers(1, min(8, count)))
    exclude = ExclusionConfig(**{name: data.draw(st.booleans()) for name in ("same_key", "duplicates", "same_group")})
    columns = [c for c, on in enumerate((exclude.same_key, exclude.same_group, exclude.duplicates)) if on]
    # One group may hold most rows, so that over-fetching does not reach its end.
    groups = np.where(rng.random(count) < data.draw(st.sampled_from([0.1, 0.9, 1.0])), 0, rng.integers(1, 6, count))
    hashes = np.stack([rng.integers(0, count, count), groups, rng.integers(0, count, count)], axis=1).astype(np.uint64)
    centre = rng.normal(size=4)
    rows = (rng.normal(size=(count, 4)) + np.where(groups == 0, 4, 0)[:, None] * centre).astype(np.float32)
    words = [f"w{rng.integers(4)} w{rng.integers(4)}" for _ in range(count)]
    searcher = searcher_class(rows, texts=words)
    finder = NeighborFinder(searcher, Identities(hashes), k, exclude)
    queries = QueryBatch(Identities(hashes[:7]), words[:7], rows[:7])

    by_clip, by_bm25 = finder.by_clip(queries), finder.by_bm25(queries)

    plain = ExactSearcher(rows, texts=words)
    for b in range(len(queries)):
        overlap = plain.search_bm25([words[b]], count)
        scores = np.full(count, -np.inf)
        scores[overlap.ids[0][overlap.ids[0] != PAD_ID]] = overlap.scores[0][overlap.ids[0] != PAD_ID]
        assert by_bm25.ids[b].tolist() == wanted(scores, hashes, hashes[b], columns, k)
        every = plain.search_embeddings(rows[b : b + 1], count)
        scores[every.ids[0]] = every.scores[0]
        expected = wanted(scores, hashes, hashes[b], columns, k)
        if searcher_class is ExactSearcher:
            assert by_clip.ids[b].tolist() == expected
        else:
            allowed = set(wanted(scores, hashes, hashes[b], columns, count)) - {PAD_ID}
            found = [n for n in by_clip.ids[b].tolist() if n != PAD_ID]
            assert len(found) == len(set(found)) == min(k, len(allowed))
            assert set(found) <= allowed


class StyledSearcher(ExactSearcher):
    """Rows have a style by their id."""

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        if not isinstance(where, Filter | None):
            return super().search_embeddings(queries_BD, k, where)
        if where is None or not where.equals:
            return super().search_embeddings(queries_BD, k, where)
        others = [n for n in range(self.num_rows) if STYLES[n % 3] not in where.equals["style"]]
        hits = super().search_embeddings(queries_BD, k, Filter(exclude_ids=(*where.exclude_ids, *others)))
        return Hits(np.where(np.isfinite(hits.scores), hits.ids, PAD_ID), hits.scores)


STYLES = ("flat", "line", "photo")


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_neighbours_share_a_column_with_their_query_where_that_is_asked(share: float) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(90, 4)).astype(np.float32)
    hashes = rng.integers(0, 2**64, (90, 3), dtype=np.uint64)
    styles = [STYLES[n % 3] for n in range(90)]
    plain, same = StyledSearcher(rows), SameConfig(column="style", share=share)
    finder = NeighborFinder(plain, Identities(hashes), 5, ExclusionConfig(), same=same)
    found = finder.by_clip(QueryBatch(Identities(hashes), [""] * 90, rows, styles))
    anywhere = NeighborFinder(plain, Identities(hashes), 5, ExclusionConfig())
    expected = anywhere.by_clip(QueryBatch(Identities(hashes), [""] * 90, rows))
    alike_B = np.array([{styles[i] for i in ids} == {style} for ids, style in zip(found.ids, styles, strict=True)])
    free_B = (found.ids == expected.ids).all(axis=1)
    assert (found.ids != np.arange(90)[:, None]).all() and (found.ids != PAD_ID).all()
    assert (alike_B | free_B).all()
    assert alike_B.all() if share == 1 else 0.35 < alike_B.mean() < 0.7
    again = finder.by_clip(QueryBatch(Identities(hashes[::-1]), [""] * 90, rows[::-1], styles[::-1]))
    assert (again.ids[::-1] == found.ids).all(), "which queries are drawn does not depend on the batch"
    only_flat = NeighborFinder(plain, Identities(hashes), 5, ExclusionConfig(), {"style": ("flat",)}, same)
    narrow = only_flat.by_clip(QueryBatch(Identities(hashes), [""] * 90, rows, styles))
    padded_B = (narrow.ids == PAD_ID).all(axis=1)
    assert all(style != "flat" for style, padded in zip(styles, padded_B, strict=True) if padded)


def test_patches_of_one_image_are_the_same_image_and_other_keys_with_a_number_are_not() -> None:
    box = [0, 0, 9, 9]
    table = pa.table(
        {
            "key": ["a", "a#0", "a#1", "b#0", "c#1", "c#2"],
            "box": pa.array([None, box, box, box, None, None], pa.list_(pa.int32(), 4)),
            "group": ["g", "g", "h", "h", "g", "g"],
            "digest": pa.array([bytes([n]) * 16 for n in (1, 2, 1, 3, 4, 5)], pa.binary(16)),
        }
    )
    hashes_N3 = Identities.of_table(table).hashes_N3
    names = table.column("key").to_pylist()

    def pairs(column: int) -> set[str]:
        same = hashes_N3[:, None, column] == hashes_N3[None, :, column]
        return {f"{names[a]} {names[b]}" for a, b in np.argwhere(same) if a < b}

    assert pairs(0) == {"a a#0", "a a#1", "a#0 a#1"}
    assert pairs(1) == {"a a#0", "a c#1", "a c#2", "a#0 c#1", "a#0 c#2", "c#1 c#2", "a#1 b#0"}
    assert pairs(2) == {"a a#1"}


ray_test = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Compute = Callable[..., Neighbors]


@pytest.fixture
def values(emoji_like_database: str, pictures: Path, tmp_path: Path) -> dict[str, Any]:
    """Configuration: the neighbours of all drawings among all drawings."""
    return {
        "database": emoji_like_database,
        "train_set": {"kind": "images", "uri": str(pictures)},
        "out": str(tmp_path / "neighbors"),
        "search": {"num_neighbors": 20},
        "workers": {"block_size": 90, "encoders": 1},
    }


def run(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return precompute_neighbors(parse_config(PrecomputeConfig, {**values, **changes}, "test"))


@pytest.fixture(scope="module")
def both(
    emoji_like_database: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Neighbors, Neighbors]:
    """The drawings' neighbours by CLIP and by BM25, with everything stored."""
    uri = str(tmp_path_factory.mktemp("both") / "neighbors")
    search = {"similarities": ["clip", "bm25"], "store_embeddings": True, "store_boxes": True}
    values = {"database": emoji_like_database, "train_set": {"kind": "images", "uri": str(pictures)}, "out": uri}
    run(values, search=search, workers={"block_size": 90, "encoders": 1})
    return Neighbors.open(uri), Neighbors.open(uri, similarity="bm25")


@pytest.fixture(scope="module")
def pair_values(emoji_like_database: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration of Re-Imagen's pairs, which are computed: two by BM25 within the database itself."""
    values = {
        "database": emoji_like_database,
        "train_set": {"kind": "database", "uri": emoji_like_database},
        "out": str(tmp_path_factory.mktemp("pairs") / "neighbors"),
        "search": {"num_neighbors": 2, "similarities": ["bm25"], "exclude": {"same_group": False}},
        "workers": {"block_size": 60},
    }
    report = run(values)
    assert report["queries"] == 320 and report["encoder"] is None and report["queries_per_second"] > 0
    return values


class TestOnRay:
    pytestmark = ray_test

    def test_no_drawing_is_its_own_neighbour_nor_is_any_of_its_group_or_content(
        self, both: tuple[Neighbors, Neighbors], emoji_like_database: str
    ) -> None:
        with Database.open(emoji_like_database) as database:
            rows = database.rows(range(database.num_rows))
        for neighbors in both:
            found = neighbors.take(range(len(neighbors)))
            assert found.keys == tuple(row.key for row in rows)
            for query, ids in zip(rows, found.ids, strict=True):
                others = [rows[n] for n in ids if n != PAD_ID]
                assert query.key not in {row.key for row in others}
                assert query.group not in {row.group for row in others}
                assert query.digest not in {row.digest for row in others}
                assert len(others) == len({row.id for row in others})
        assert (both[0].take(range(320)).ids != PAD_ID).all()

    def test_they_are_the_nearest_that_remain(
        self, both: tuple[Neighbors, Neighbors], emoji_like_database: str
    ) -> None:
        with Database.open(emoji_like_database) as database:
            rows, queries = database.rows(range(320)), range(0, 320, 16)
            near = database.search_embeddings(database.embeddings(queries), 320)
            like = database.search_bm25([rows[q].caption for q in queries], 320)
        for neighbors, every in zip(both, (near, like), strict=True):
            found = neighbors.take(queries)
            for b, query in enumerate(queries):
                kept = [
                    n for n in every.ids[b]
                    if n != PAD_ID and rows[n].group != rows[query].group and rows[n].digest != rows[query].digest
                ][:20]  # fmt: skip
                scores = dict(zip(every.ids[b], every.scores[b], strict=True))
                best = [scores[n] for n in kept]
                np.testing.assert_allclose(found.scores[b][: len(kept)], best, rtol=2e-3)

    def test_the_proposal_is_how_often_a_row_is_a_neighbour(self, both: tuple[Neighbors, Neighbors]) -> None:
        for neighbors in both:
            ids = neighbors.take(range(320)).ids
            counts = [int((ids == n).sum()) for n in range(320)]
            np.testing.assert_array_equal(neighbors.proposal(), np.asarray(counts) / (20 * 320))
            assert neighbors.proposal().dtype == np.float64
        assert both[0].proposal().sum() == pytest.approx(1)

    def test_stored_embeddings_and_boxes_are_those_of_the_neighbours(
        self, both: tuple[Neighbors, Neighbors], emoji_like_database: str
    ) -> None:
        with Database.open(emoji_like_database) as database:
            for neighbors in both:
                ids = neighbors.take([7, 3, 7]).ids
                stored = neighbors.embeddings([7, 3, 7])
                np.testing.assert_array_equal(stored[ids != PAD_ID], database.embeddings(ids[ids != PAD_ID]))
                assert not stored[ids == PAD_ID].any()
                assert (neighbors.boxes([7, 3]) == -1).all()

    def test_neighbours_are_read_by_key_and_by_position_in_any_order(self, both: tuple[Neighbors, Neighbors]) -> None:
        neighbors = both[0]
        keys = neighbors.take([300, 2, 2]).keys
        np.testing.assert_array_equal(neighbors.ids(keys, k=4), neighbors.take([300, 2, 2]).ids[:, :4])
        assert neighbors.positions(keys).tolist() == [300, 2, 2]
        with pytest.raises(SearchError, match="'nobody' is not among the 320 queries"):
            neighbors.ids(["nobody"])
        with pytest.raises(SearchError, match="there is no query 320"):
            neighbors.take([320])
        with pytest.raises(SearchError, match="holds 20 neighbours a query"):
            neighbors.take([0], k=21)

    def test_they_do_not_depend_on_workers_or_blocks(
        self, both: tuple[Neighbors, Neighbors], values: dict[str, Any]
    ) -> None:
        run(values, workers={"block_size": 37, "encoders": 1, "searchers": 2})
        here, there = Neighbors.open(values["out"]).take(range(320)), both[0].take(range(320))
        np.testing.assert_array_equal(here.ids, there.ids)
        np.testing.assert_array_equal(here.scores, there.scores)
        assert here.keys == there.keys

    def test_rows_of_the_database_itself_are_queries_too(self, pair_values: dict[str, Any]) -> None:
        with Database.open(pair_values["database"]) as database:
            for query, ids in enumerate(Neighbors.open(pair_values["out"]).take(range(320)).ids):
                row, *others = database.rows([query, *ids])
                # The same drawing in another style has the same words.
                assert {other.group for other in others} == {row.group}
                assert query not in ids

    def test_the_same_run_again_finds_itself_and_another_is_refused(self, pair_values: dict[str, Any]) -> None:
        again = run(pair_values, workers={"block_size": 9})
        assert again["finished"] and "seconds" not in again
        with pytest.raises(ConfigError, match="holds neighbours of another database, train set or search"):
            run(pair_values, search={**pair_values["search"], "num_neighbors": 3})

    def test_a_folder_that_holds_something_else_is_refused(self, pair_values: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "precious.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"is in use already \(it holds precious\.txt\)"):
            run(pair_values, out=str(tmp_path))

    def test_every_damaged_file_is_named(self, pair_values: dict[str, Any], tmp_path: Path) -> None:
        copy = tmp_path / "neighbors"
        shutil.copytree(pair_values["out"], copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
        assert len(files) > 5
        for file in files:
            whole = file.read_bytes()
            for damaged in (whole[: len(whole) // 2], _flipped(whole)):
                file.write_bytes(damaged)
                with pytest.raises(CorruptionError, match=file.name):
                    Neighbors.open(str(copy))
            file.write_bytes(whole)
        assert len(Neighbors.open(str(copy))) == 320

    def test_a_version_that_is_not_published_yet_can_be_searched(
        self, emoji_like_database: str, both: Any, tmp_path: Path
    ) -> None:
        catalog = Catalog.open(emoji_like_database)
        manifest = catalog.live_manifest()
        copy = tmp_path / "version"
        shutil.copytree(Path(emoji_like_database, "versions", manifest.version), copy)
        (copy / "manifest.json").unlink()
        queries = Queries.open(DatabaseRowsConfig(kind="database", uri=emoji_like_database))
        target = open_store(copy)
        search = NeighborSearchConfig(num_neighbors=20)
        builds = open_store(tmp_path / "builds")
        info = compute_neighbors(target, manifest, queries, search, target, "neighbors", builds)
        assert (info.path, info.num_neighbors, info.queries) == ("neighbors", 20, 320)
        inside = Neighbors.open(str(copy / info.path))
        # The row store's embeddings are half as precise as those that the encoder has just made.
        scores = inside.take(range(320)).scores, both[0].take(range(320)).scores
        np.testing.assert_allclose(*scores, atol=1e-3)
        np.testing.assert_array_equal(np.load(copy / info.proposal), inside.proposal())
        left = [*manifest.files, {"path": "neighbors/clip/rows.lance/data/left.lance", "bytes": 1, "sha256": "0"}]
        again = manifest.model_copy(update={"files": tuple(left)})
        assert compute_neighbors(target, again, queries, search, target, "neighbors", builds) == info

    def test_neighbours_of_one_version_are_refused_for_another(
        self, both: tuple[Neighbors, Neighbors], emoji_like_database: str
    ) -> None:
        with Database.open(emoji_like_database) as database:
            both[0].check_database(database)
            database.manifest = database.manifest.model_copy(update={"version": "other"})
            with pytest.raises(VersionError, match="not from version other"):
                both[0].check_database(database)

    def test_items_that_cannot_be_used_are_listed(self, values: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
        shutil.copytree(pictures / "filled", tmp_path / "few")
        (tmp_path / "few" / "aaa.png").write_bytes(b"<svg>")
        few = {
            "train_set": {"kind": "images", "uri": str(tmp_path / "few")},
            "search": {"num_neighbors": 2, "similarities": ["bm25"]},
        }
        report = run(values, **few)
        assert (report["queries"], report["failed"]) == (80, 1)
        assert json.loads(Path(values["out"], "failures.jsonl").read_text())["key"] == "aaa.png"
        with pytest.raises(SourceError, match=r"1 of 81 items .* cannot be used \(1\.2%\), e\.g\. aaa\.png"):
            run(values, out=str(tmp_path / "strict"), max_failed_share=0.01, **few)


def _flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 3] ^= 4
    return bytes(changed)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"search": {"num_neighbors": 321}}, SearchError, "has 320 rows"),
        ({"database": "/nowhere/at-all"}, VersionError, "no database is published at /nowhere/at-all"),
        ({"version": "absent"}, VersionError, "'absent'"),
        ({"encoder": {"model": "mini-clip"}}, EncoderMismatchError, "leave `encoder` out"),
        ({"train_set": {"kind": "images", "uri": "/nowhere"}}, RemembrandtError, "/nowhere"),
        ({"search": {"num_neighbours": 3}}, ConfigError, "did you mean 'num_neighbors'"),
        ({"train_set": {"kind": "imges", "uri": "x"}}, ConfigError, "train_set"),
    ],
)
def test_a_mistake_is_one_line(
    values: dict[str, Any], changes: dict[str, Any], error: type[RemembrandtError], message: str
) -> None:
    with pytest.raises(error) as told:
        run(values, **changes)
    assert message in str(told.value)
    assert "\n" not in str(told.value)
