"""Parts of databases tell nothing of the whole, and go when it goes."""

from collections.abc import Callable
from pathlib import Path

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.manifest import MANIFEST, encode_document
from remembrandt.serving.retrieval import DatabaseFacts
from tests.databases.test_catalog import manifest
from tests.support.service import Service

Quiet = Callable[..., Service]


def published(folder: Path) -> str:
    catalog = Catalog.open(str(folder / "emoji"))
    catalog.version_store("one").write(MANIFEST, encode_document(manifest("one")))
    catalog.publish("one")
    return str(folder / "emoji")


def test_versions_of_a_part_do_not_tell_how_many_rows_the_whole_has(quiet: Quiet, tmp_path: Path) -> None:
    uri = published(tmp_path)
    service = quiet(shared={"part": {"uri": uri, "where": {"licence": ["MIT"]}}, "whole": uri})
    alice = service.tenant("alice")
    for name, rows in (("part", None), ("whole", 1)):
        (version,) = alice.get(f"/v1/databases/{name}/versions").json()["data"]
        assert (version["id"], version["live"], version["rows"]) == ("one", True, rows)


def test_a_view_of_what_is_no_longer_shared_is_gone_and_can_be_deleted(quiet: Quiet) -> None:
    before = quiet(shared={"emoji": "/shared/emoji"})
    before.backend.facts = DatabaseFacts("one", 1, 1, (), False, False, None)  # type: ignore[attr-defined]
    alice = before.tenant("alice")
    assert alice.post("/v1/databases", json={"name": "mine", "view_of": "emoji"}).status_code == 201
    after = quiet().as_tenant(alice.tenant)
    assert after.post("/v1/databases/mine/search", json={"text": "a"}).status_code == 404
    assert after.post("/indices-list").json() == []
    (listed,) = after.get("/v1/databases").json()["data"]
    assert (listed["name"], listed["version"], listed["rows"]) == ("mine", None, 0)
    assert after.delete("/v1/databases/mine").status_code == 204
    assert after.get("/v1/databases").json()["data"] == []
