"""Commit markers say what is finished, and nothing else does."""

from pathlib import Path

import pytest

from remembrandt.storage import Store, open_store
from remembrandt.storage.ledger import FileRecord, Ledger, Marker, describe_file


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path) if request.param == "file" else open_store(request.getfixturevalue("s3_uri"))


def test_only_committed_blocks_count(store: Store) -> None:
    ledger = Ledger(store, "blocks")
    assert ledger.missing(range(4)) == [0, 1, 2, 3]
    ledger.commit(Marker(2, (FileRecord("f", 1, "ab"),), {"rows": 7}))
    ledger.commit(Marker(0, (), {}))
    assert ledger.missing(range(4)) == [1, 3]
    assert ledger.committed()[2] == Marker(2, (FileRecord("f", 1, "ab"),), {"rows": 7})
    ledger.clear()
    assert ledger.missing([0, 2]) == [0, 2]


def test_stages_are_separate(store: Store) -> None:
    Ledger(store, "rows").commit(Marker(0, (), {}))
    assert Ledger(store, "vectors").missing([0]) == [0]


def test_a_file_is_described_by_size_and_digest(store: Store) -> None:
    store.write("f", b"abc")
    record = describe_file(store, "f", "elsewhere/f")
    assert record == FileRecord("elsewhere/f", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
