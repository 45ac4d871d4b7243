"""Databases of all tenants in one process: opened, evicted by size, and never two versions in one answer."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.maintenance import publish_version, rollback_version
from remembrandt.errors import RemembrandtError, SearchError
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.serving.config import parse_service
from remembrandt.serving.retrieval import Query, Retrieval, Rows
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def retrieval(service_values: dict[str, Any]) -> Retrieval:
    return Retrieval(parse_service({"accounts": "sqlite:///unused", "storage": "unused", **service_values}))


@pytest.fixture(scope="module")
def two_versions(
    _session_ray_cluster: RayCluster, build_values: dict[str, Any], pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str, str]:  # fmt: skip
    """A database, and its two versions: their rows have other captions."""
    _session_ray_cluster.connect()
    folder = tmp_path_factory.mktemp("swap")
    uri, versions = str(folder / "database"), []
    for name in ("old", "new"):
        source = folder / name
        shutil.copytree(pictures / "outline", source)
        for caption in source.glob("*.txt"):
            caption.write_text(f"{name} {caption.read_text()}")
        values = {**build_values, "uri": uri, "source": {"kind": "images", "uri": str(source)}}
        report = build_database(parse_config(BuildConfig, values, "test"))
        versions.append(report["version"])
    return uri, versions[0], versions[1]


def test_queries_of_all_kinds_are_answered_together(retrieval: Retrieval, emoji_like_database: str) -> None:
    ref = DatabaseRef(uri=emoji_like_database)
    part = DatabaseRef(uri=emoji_like_database, where={"style": ("outline",)})
    with Database.open(emoji_like_database) as database:
        (image,) = database.rows([5], ["image"])
        vector = tuple(map(float, database.embeddings([9])[0]))
        alone = database.search_texts(["red star"], 4)
    found = retrieval.search(
        [
            Query(ref, 4, text="red star"),
            Query(ref, 4, text="blue moon"),
            Query(part, 4, text="red star"),
            Query(ref, 2, image=image.image),
            Query(ref, 2, row=5),
            Query(ref, 2, embedding=vector),
            Query(ref, 3, bm25="green arrow"),
        ]
    )
    rows = [[row.id for row in own.rows] for own in found if isinstance(own, Rows)]
    assert rows[0] == alone.ids[0].tolist()
    assert {row.fields["style"] for row in found[2].rows if row.fields} == {"outline"}  # type: ignore[union-attr]
    assert 5 in rows[3] and 5 not in rows[4] and 9 in rows[5]
    assert all("green" in row.caption for row in found[6].rows)  # type: ignore[union-attr]


def test_a_mistake_in_one_query_does_not_hurt_the_others(retrieval: Retrieval, emoji_like_database: str) -> None:
    ref = DatabaseRef(uri=emoji_like_database)
    wrong = DatabaseRef(uri=emoji_like_database, where={"colour": ("red",)})
    found = retrieval.search(
        [
            Query(ref, 2, text="a"),
            Query(wrong, 2, text="a"),
            Query(ref, 2, embedding=(1.0, 2.0)),
            Query(ref, 2, embedding=(1.0, 2.0, 3.0)),
            Query(ref, 2, row=9999),
        ]
    )
    assert [isinstance(own, RemembrandtError) for own in found] == [False, True, True, True, True]
    pictures = retrieval.find("rdm", [PictureRequest(text="a", database=own) for own in (ref, wrong)])
    assert [isinstance(own, SearchError) for own in pictures] == [False, True]


def test_databases_are_evicted_by_size_and_what_still_searches_keeps_them(
    emoji_like_database: str, tmp_path: Path
) -> None:
    copies = [
        DatabaseRef(uri=str(shutil.copytree(emoji_like_database, tmp_path / f"copy{number}"))) for number in range(3)
    ]
    with Database.open(emoji_like_database) as database:
        size = database.manifest.total_bytes
    opened = OpenDatabases(max_bytes=int(size * 2.5))
    first = opened[copies[0]]
    first.search_bm25(["red"], 1)
    for ref in (copies[1], copies[0], copies[2]):
        _ = opened[ref]
    assert len(opened) == 2 and opened.total_bytes <= size * 2.5
    assert opened[copies[0]] is first
    _ = opened[copies[1]], opened[copies[2]]
    assert first.search_bm25(["red"], 1).ids.shape == (1, 1)
    assert opened[copies[0]] is not first


def test_a_database_is_opened_once_however_many_ask(emoji_like_database: str) -> None:
    opened, gate = OpenDatabases(), threading.Barrier(8)

    def ask(_: int) -> Database:
        gate.wait()
        return opened[DatabaseRef(uri=emoji_like_database)]

    with ThreadPoolExecutor(8) as pool:
        assert len({id(database) for database in pool.map(ask, range(8))}) == 1
    assert opened.misses == 1


def test_a_replica_starts_whatever_a_shared_database_lacks(
    retrieval: Retrieval, emoji_like_database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval.warm([DatabaseRef(uri=str(tmp_path / "nowhere")), DatabaseRef(uri=emoji_like_database)])
    assert "nowhere cannot be searched yet" in capsys.readouterr().err


def test_fifty_swaps_under_load_and_every_answer_is_of_one_version(
    retrieval: Retrieval, two_versions: tuple[str, str, str]
) -> None:
    uri, old, new = two_versions
    catalog, ref = Catalog.open(uri), DatabaseRef(uri=uri)
    stop, seen = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            for answer in retrieval.search([Query(ref, 10, text="red star"), Query(ref, 10, bm25="star")]):
                assert isinstance(answer, Rows)
                seen.append((answer.version, {row.caption.partition(" ")[0] for row in answer.rows}))
            (painted,) = retrieval.find("rdm", [PictureRequest(text="red star", database=ref)])
            assert not isinstance(painted, RemembrandtError)
            words = {row.caption.partition(" ")[0] for row in painted.record.neighbors}
            seen.append((painted.record.version, words))

    with ThreadPoolExecutor(4) as pool:
        searching = [pool.submit(search) for _ in range(4)]
        for _ in range(25):
            rollback_version(catalog, old)
            publish_version(catalog, new)
            threading.Event().wait(0.05)
        rollback_version(catalog, old)
        threading.Event().wait(0.4)
        stop.set()
        for own in searching:
            own.result()
    words = {old: {"old"}, new: {"new"}}
    assert all(found == words[version] for version, found in seen)
    assert {version for version, _ in seen} == {old, new}
