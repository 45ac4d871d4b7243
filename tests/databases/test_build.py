"""What a build promises: the same rows whatever the workers, appends without re-embedding, and gates that hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database, embed_job, plan_build
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.embed import embed_blocks
from remembrandt.databases.exchange import diff_versions, export_clip_retrieval
from remembrandt.databases.maintenance import prune_versions, rollback_version
from remembrandt.databases.manifest import encode_document
from remembrandt.databases.workers import WorkersConfig
from remembrandt.errors import (
    ConfigError,
    CorruptionError,
    EncoderMismatchError,
    GateError,
    SearchError,
    SourceError,
)
from remembrandt.storage import open_store
from remembrandt.storage.ledger import Ledger
from tests.support.pictures import draw

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def build(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return build_database(parse_config(BuildConfig, {**values, **changes}, "test"))


@pytest.fixture
def few(build_values: dict[str, Any], pictures: Path, tmp_path: Path) -> dict[str, Any]:
    """A build of the 80 'filled' drawings."""
    source = {"kind": "images", "uri": str(tmp_path / "few")}
    shutil.copytree(pictures / "filled", tmp_path / "few" / "filled")
    return {**build_values, "source": source, "uri": str(tmp_path / "databases" / "few")}


def test_rows_do_not_depend_on_workers_blocks_or_listing_order(
    emoji_like_database: str, build_values: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    shuffled = tmp_path / "copied in another order"
    for path in sorted(pictures.rglob("*.*"), key=lambda p: str(p)[::-1]):
        target = shuffled / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    uri = str(tmp_path / "databases" / "drawings")
    build(
        build_values,
        uri=uri,
        source={"kind": "images", "uri": str(shuffled)},
        workers={"block_size": 23, "encoders": 2},
    )
    with Database.open(emoji_like_database) as one, Database.open(uri) as other:
        columns = ["id", "key", "caption", "digest", "image"]
        assert one.dataset.to_table(columns=columns).equals(other.dataset.to_table(columns=columns))
        ids = np.arange(one.num_rows)
        np.testing.assert_array_equal(one.embeddings(ids), other.embeddings(ids))
        np.testing.assert_array_equal(one.search_ids(ids, 10).ids, other.search_ids(ids, 10).ids)
        texts = [row.caption for row in one.rows(ids)]
        np.testing.assert_array_equal(one.search_bm25(texts, 10).ids, other.search_bm25(texts, 10).ids)


def test_the_same_build_again_finds_itself(few: dict[str, Any]) -> None:
    first = build(few)
    second = build(few, workers={"block_size": 7})
    assert second["version"] == first["version"]
    assert Catalog.open(few["uri"]).versions() == [first["version"]]


def texts(path: Path, words: list[str]) -> dict[str, Any]:
    """A source of one line a word."""
    path.write_text("".join(json.dumps({"key": f"t{n}", "text": word}) + "\n" for n, word in enumerate(words)))
    return {"source": {"kind": "texts", "uri": str(path)}, "encoder": None}


def test_a_version_of_a_given_name_is_not_taken_for_another(few: dict[str, Any], tmp_path: Path) -> None:
    first = {**few, "version": "v1", **texts(tmp_path / "a.jsonl", ["cat", "dog", "owl"])}
    build(first)
    other = texts(tmp_path / "b.jsonl", ["oak", "elm", "fir"])
    with pytest.raises(ConfigError, match=r"version 'v1' of .* was begun from another source or configuration"):
        build({**first, **other})
    builds = Catalog.open(few["uri"]).build_store("v2")
    begun = plan_build(parse_config(BuildConfig, {**first, "version": "v2"}, "test")).begun
    builds.write("begun.json", encode_document(begun))
    with pytest.raises(ConfigError, match="version 'v2'"):
        build({**first, **other, "version": "v2"})


def test_a_build_that_goes_on_keeps_its_blocks(few: dict[str, Any], tmp_path: Path) -> None:
    values = {**few, **texts(tmp_path / "a.jsonl", [f"word {n}" for n in range(100)]), "workers": {"block_size": 64}}
    plan = plan_build(parse_config(BuildConfig, values, "test"))
    plan.catalog.build_store(plan.version).write("begun.json", encode_document(plan.begun))
    embed_blocks(embed_job(parse_config(BuildConfig, values, "test"), plan), WorkersConfig(), plan.items)
    Ledger(plan.catalog.build_store(plan.version), "blocks-2")._store.delete("00000000.json")  # as a kill leaves it
    assert build({**values, "workers": {"block_size": 65}})["rows"] == 100


def test_appending_keeps_old_embeddings_and_adds_only_what_is_new(
    few: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    first = build(few)
    shutil.copytree(pictures / "outline", tmp_path / "few" / "outline")
    second = build(few, base="current")
    assert second["rows"] == 160 and second["already_in_base"] == 80
    with Database.open(few["uri"], version=first["version"]) as old, Database.open(few["uri"]) as new:
        assert new.version == second["version"] and new.manifest.parent == first["version"]
        assert new.embeddings(range(80)).tobytes() == old.embeddings(range(80)).tobytes()
        found = diff_versions(old, new)
        assert len(found.added) == 80 and not found.removed and not found.changed
        assert [row.id for row in new.rows(range(160))] == list(range(160))


def test_rows_leave_by_id_key_group_and_licence(few: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    build(few)
    with Database.open(few["uri"]) as old:
        keys = [row.key for row in old.rows(range(80))]
    exclude = {"ids": [0], "keys": [keys[5]], "groups": ["red-ring"]}
    report = build(few, source=None, base="current", exclude=exclude)
    assert report["rows"] == 77 and report["excluded"] == 3
    with Database.open(few["uri"]) as new:
        left = {row.key for row in new.rows(range(77))}
        assert left == set(keys) - {keys[0], keys[5], "filled/red-ring.png"}
        assert (new.search_bm25(["red ring"], 77).ids < 77).all()
    shutil.copytree(pictures / "striped", tmp_path / "few" / "striped")
    assert build(few, exclude={"licences": ["CC-BY-SA-4.0"]})["rows"] == 80


def test_damaged_files_are_counted_and_listed_and_too_many_stop_the_build(few: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "few" / "filled"
    (folder / "page.png").write_text("<!DOCTYPE html><html></html>")
    (folder / "cut.png").write_bytes((folder / "red-star.png").read_bytes()[:60])
    report = build(few)
    assert report["rows"] == 80 and report["failed"] == 2
    store = Catalog.open(few["uri"]).version_store(report["version"])
    listed = [json.loads(line)["key"] for line in store.read("failures.jsonl").splitlines()]
    assert sorted(listed) == ["filled/cut.png", "filled/page.png"]
    with pytest.raises(SourceError, match=r"2 of 82 items \(2\.4%\) cannot be used.*gate\.max_failed_share"):
        build(few, gate={"max_failed_share": 0.01, "recall_at": 5}, exclude={"keys": ["none"]})
    assert Catalog.open(few["uri"]).current() == report["version"]


def test_a_gate_that_fails_leaves_the_live_version(few: dict[str, Any]) -> None:
    good = build(few)
    poor = {"factory": "SQ8", "rerank": 0}
    with pytest.raises(GateError, match=r"recall@10 is 0\.\d+ and the floor 1\.0"):
        build(few, vectors=poor, gate={"recall_floor": 1.0, "recall_at": 10})
    catalog = Catalog.open(few["uri"])
    assert catalog.current() == good["version"] and catalog.versions() == [good["version"]]
    gone = prune_versions(catalog, keep=5, dry_run=True)
    assert len(gone.unfinished) == 1 and gone.versions == ()
    # A lower floor is measured on queries of its own, and on what was built already.
    lower = build(few, vectors=poor, gate={"recall_floor": 0.5, "recall_at": 20, "queries": 30})
    assert lower["version"] == gone.unfinished[0] and lower["recall"]["recall"] > 0.5
    assert (lower["recall"]["k"], lower["recall"]["queries"]) == (20, 30)


def test_equal_pictures_pass_the_gate(few: dict[str, Any], tmp_path: Path) -> None:
    picture = tmp_path / "few" / "filled" / "red-star.png"
    for number in range(60):
        shutil.copy(picture, picture.with_name(f"copy-{number}.png"))
    report = build(few, vectors={"factory": "Flat"}, gate={"recall_floor": 1.0, "recall_at": 20})
    assert report["recall"]["recall"] == 1.0


def test_a_damaged_version_is_not_rolled_back_to(few: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    catalog, first = Catalog.open(few["uri"]), build(few)
    shutil.copy(pictures / "outline" / "red-star.png", tmp_path / "few" / "filled" / "another.png")
    second = build(few)
    catalog.version_store(first["version"]).delete("bm25/terms.npy")
    with pytest.raises(CorruptionError, match=r"terms\.npy is missing"):
        rollback_version(catalog)
    assert catalog.current() == second["version"]


def test_a_dry_run_writes_nothing(few: dict[str, Any]) -> None:
    plan = build_database(parse_config(BuildConfig, few, "test"), dry_run=True)
    assert plan["items"] == 80 and plan["vectors"]["rows"] == 80
    assert open_store(few["uri"]).files() == []


def test_patches_are_cut_embedded_and_traced_to_their_image(few: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for name in ("red", "blue", "green"):
        draw("star", name, "filled", 256).resize((500, 300), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    patches = {"mode": "patches", "shorter_edge": 300, "size": 128, "per_image": [2, 3]}
    report = build(few, source={"kind": "images", "uri": str(folder)}, patches=patches, gate={"recall_at": 2})
    with Database.open(few["uri"]) as database:
        rows = database.rows(range(report["rows"]))
        assert 6 <= len(rows) <= 9
        for row, image in zip(rows, database.images(range(report["rows"])), strict=True):
            assert image is not None and image.size == (128, 128) and row.box is not None
            left, top, right, bottom = row.box
            assert 0 <= left < right <= 500 and 0 <= top < bottom <= 300
            assert row.group == row.key.partition("#")[0]
    again = build(
        few, source={"kind": "images", "uri": str(folder)}, patches=patches, base="current", gate={"recall_at": 2}
    )
    assert again["rows"] == report["rows"] and again["already_in_base"] == 3


def test_a_database_may_be_its_own_train_set(few: dict[str, Any]) -> None:
    exclude = {"same_key": True, "duplicates": True, "same_group": False}
    build(few, neighbors={"train_set": "self", "num_neighbors": 3, "exclude": exclude})
    with Database.open(few["uri"]) as database:
        ids = database.search_ids(range(80), 3).ids
        np.testing.assert_array_equal(database.proposal(), np.bincount(ids.reshape(-1), minlength=80) / (3 * 80))


def test_texts_without_images_make_a_bm25_database(few: dict[str, Any], tmp_path: Path) -> None:
    words = [f"the {word} sat on the mat" for word in ("cat", "dog", "owl")]
    report = build(few, **texts(tmp_path / "texts.jsonl", [*words, "½"]))  # ½ is a digit, and no word
    with Database.open(few["uri"]) as database:
        with pytest.raises(SearchError, match="holds texts only"):
            export_clip_retrieval(database, open_store(tmp_path / "export"))
        assert report["rows"] == 4 and database.search_bm25(["owl"], 1).ids.tolist() == [[2]]
        with pytest.raises(Exception, match="holds texts only"):
            database.search_embeddings(np.zeros((1, 64)), 1)


def test_export_and_import_in_clip_retrieval_layout_keep_neighbours(few: dict[str, Any], tmp_path: Path) -> None:
    build(few)
    imported = str(tmp_path / "databases" / "imported")
    with Database.open(few["uri"]) as original:
        assert export_clip_retrieval(original, open_store(tmp_path / "export")) == 80
        source = {"kind": "clip_retrieval", "uri": str(tmp_path / "export")}
        build(few, uri=imported, source=source)
        with Database.open(imported) as copy:
            queries = original.embeddings(range(80))
            np.testing.assert_array_equal(
                original.search_embeddings(queries, 5).ids, copy.search_embeddings(queries, 5).ids
            )
            assert [r.caption for r in copy.rows(range(80))] == [r.caption for r in original.rows(range(80))]


@pytest.mark.s3
def test_the_same_database_on_s3(few: dict[str, Any], s3_uri: str) -> None:
    uri = f"{s3_uri}/few"
    local, remote = build(few), build(few, uri=uri)
    assert local["version"] == remote["version"]
    with Database.open(few["uri"]) as here, Database.open(uri) as there:
        assert here.dataset.to_table().equals(there.dataset.to_table())
        np.testing.assert_array_equal(here.search_ids(range(80), 5).ids, there.search_ids(range(80), 5).ids)
        assert there.search_bm25(["red ring"], 3).ids.tolist() == here.search_bm25(["red ring"], 3).ids.tolist()
        assert there.images([3])[0] is not None


def test_ready_embeddings_of_one_caption_are_neighbours(few: dict[str, Any], tmp_path: Path) -> None:
    rng, columns = np.random.default_rng(0), {"caption": ["a thing"] * 40, "image_path": [f"i{n}" for n in range(40)]}
    ready = export(tmp_path / "ready", rng.standard_normal((40, 16)), columns)
    build({**few, **ready, "neighbors": {"train_set": "self", "num_neighbors": 3}, "gate": {"recall_at": 5}})
    with Database.open(few["uri"]) as database:
        assert database.proposal().sum() == pytest.approx(1)
    wider = export(tmp_path / "wider", rng.standard_normal((5, 24)), {name: part[:5] for name, part in columns.items()})
    with pytest.raises(EncoderMismatchError, match=r"brings 24-dimensional embeddings and version \w+ has 16"):
        build({**few, **wider}, base="current")


def test_embeddings_may_be_missing_in_the_first_rows(few: dict[str, Any], tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((20, 16))
    embeddings[0] = np.nan
    columns = {"caption": ["a thing"] * 20, "image_path": [f"i{n}" for n in range(20)]}
    values = {**few, **export(tmp_path / "ready", embeddings, columns), "exclude": {"keys": ["i1"]}}
    report = build(values, gate={"recall_at": 5, "max_failed_share": 0.1})
    assert (report["rows"], report["failed"], report["excluded"]) == (18, 1, 1)
    with pytest.raises(ConfigError, match="'licence' is a column of every database and cannot be a field"):
        build({**values, "source": {**values["source"], "fields": ["licence"]}})


def export(folder: Path, embeddings_ND: np.ndarray, columns: dict[str, list[str]]) -> dict[str, Any]:
    """A folder of clip-retrieval without pictures, and what a build says of it."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", embeddings_ND.astype(np.float16))
    pq.write_table(pa.table(columns), folder / "metadata" / "metadata_0.parquet")
    source = {"kind": "clip_retrieval", "uri": str(folder), "images": "none"}
    return {"source": source, "encoder": None, "bm25": {"backend": "none"}}


def test_appending_with_another_encoder_names_both(few: dict[str, Any]) -> None:
    build(few)
    with pytest.raises(EncoderMismatchError, match=r"was embedded with vit 64x2/8.* and this build uses None"):
        build(few, base="current", encoder=None)
