"""Versions become live atomically, and a damaged manifest or pointer is refused by name."""

from pathlib import Path

import pytest

from remembrandt.databases.build import alias_name, index_name
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.manifest import MANIFEST, Manifest, Pointer, SourceInfo, decode_document, encode_document
from remembrandt.errors import CorruptionError, VersionError
from remembrandt.storage import ConflictError


def manifest(version: str, created_at: str = "2026-01-01T00:00:00+00:00", **changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "emoji", "version": version, "created_at": created_at, "created_by": {}, "rows": 1, "dim": None,
        "fields": (), "licences": {}, "source": SourceInfo(config={}, fingerprint="f", records=1, failed=0),
        "encoder": None, "vectors": None, "bm25": None, "recall": None, "planned": {}, "actual": {}, "config": {},
        "files": (),
    }  # fmt: skip
    return Manifest.model_validate(values | changes)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog.open(str(tmp_path / "emoji"))
    for day, version in enumerate(("one", "two", "three"), 1):
        document = manifest(version, f"2026-01-0{day}T00:00:00+00:00")
        catalog.version_store(version).write(MANIFEST, encode_document(document))
    return catalog


def test_nothing_is_live_before_the_first_publish(catalog: Catalog) -> None:
    assert catalog.versions() == ["one", "two", "three"]
    with pytest.raises(VersionError, match="no database is published at"):
        catalog.current()


def test_publish_moves_the_live_version(catalog: Catalog) -> None:
    assert catalog.publish("one") and catalog.publish("three")
    assert not catalog.publish("three")
    assert catalog.current() == "three"
    assert catalog.live_manifest().version == "three"


def test_rollback_returns_to_the_version_before(catalog: Catalog) -> None:
    for version in ("one", "two", "three"):
        catalog.publish(version)
    assert catalog.rollback() == "two"
    assert catalog.rollback() == "one"
    with pytest.raises(VersionError, match="there is none before it"):
        catalog.rollback()
    assert catalog.rollback("three") == "three"


def test_an_unfinished_version_cannot_go_live(catalog: Catalog) -> None:
    catalog.version_store("half").write("rows.lance/data/x.lance", b"x")
    with pytest.raises(VersionError, match=r"version 'half' .* was never finished"):
        catalog.publish("half")
    assert "half" not in catalog.versions()


def test_a_publish_that_lost_the_race_is_refused(catalog: Catalog) -> None:
    catalog.publish("one")
    stale = catalog.store.read_tagged("current")
    catalog.publish("two")
    assert stale is not None
    with pytest.raises(ConflictError):
        catalog.store.replace("current", stale[0], stale[1])


def test_every_flipped_byte_of_manifest_and_pointer_is_noticed() -> None:
    for document in (manifest("one"), Pointer(version="one", manifest_sha256="ab", history=("zero",))):
        data = encode_document(document)
        assert decode_document(type(document), data, "place") == document
        for position in range(0, len(data)):
            flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            with pytest.raises(CorruptionError, match="place is damaged"):
                decode_document(type(document), flipped, "place")
        for length in range(0, len(data), 7):
            with pytest.raises(CorruptionError):
                decode_document(type(document), data[:length], "place")


def test_a_manifest_other_than_the_published_one_is_refused(catalog: Catalog) -> None:
    catalog.publish("one")
    catalog.version_store("one").write(MANIFEST, encode_document(manifest("one", rows=2)))
    with pytest.raises(CorruptionError, match="is not the one that was published"):
        catalog.live_manifest()


def test_a_manifest_in_the_wrong_folder_is_refused(catalog: Catalog) -> None:
    catalog.version_store("four").write(MANIFEST, encode_document(manifest("one")))
    with pytest.raises(CorruptionError, match="is the manifest of version 'one'"):
        catalog.manifest("four")


def test_a_newer_schema_asks_for_an_upgrade(catalog: Catalog) -> None:
    catalog.version_store("future").write(MANIFEST, encode_document(manifest("future", schema_version=99)))
    with pytest.raises(VersionError, match=r"schema version 99, and this Remembrandt reads up to 1: upgrade"):
        catalog.manifest("future")


def test_databases_of_one_name_share_no_index(tmp_path: Path) -> None:
    one, other = (Catalog.open(str(tmp_path / root / "photos")) for root in ("prod", "dev"))
    assert alias_name(one) != alias_name(other) and index_name(one, "v1") != index_name(other, "v1")
    assert index_name(one, "V1") == index_name(Catalog.open(f"file://{one.store.uri}"), "v1")


@pytest.mark.parametrize(
    "version", ["", ".", "..", "./one", "../versions/one", "/etc", "one/", "one\0", "eins zwei", "ö"]
)
def test_what_is_not_the_name_of_a_version_is_not_looked_for(catalog: Catalog, version: str) -> None:
    with pytest.raises(VersionError, match="not the name of a version"):
        catalog.manifest(version)


def test_a_folder_beside_the_versions_is_none_of_them(catalog: Catalog) -> None:
    catalog.store.write("versions/lost+found/x", b"x")
    assert catalog.versions() == ["one", "two", "three"]
