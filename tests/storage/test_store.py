"""Local folders and S3 behave alike."""

import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remembrandt.errors import ConfigError, StorageError
from remembrandt.storage import ConflictError, Store, open_store, split_uri


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "root") if request.param == "file" else open_store(request.getfixturevalue("s3_uri"))


def test_a_written_file_is_read_back_and_listed(store: Store) -> None:
    store.write("a/b.txt", b"hello")
    store.write("c.txt", b"")
    assert store.read("a/b.txt") == b"hello"
    assert [(e.path, e.bytes) for e in store.files()] == [("a/b.txt", 5), ("c.txt", 0)]
    assert [e.path for e in store.files("a")] == ["a/b.txt"]
    assert store.folders() == ["a"]
    assert store.exists("a/b.txt") and not store.exists("a")


def test_identity_changes_with_content(store: Store) -> None:
    store.write("f", b"one")
    before = store.files()[0].identity
    store.write("f", b"two")
    assert store.files()[0].identity != before


def test_streams_are_seekable(store: Store) -> None:
    store.write("f", bytes(range(256)) * 100)
    with store.open("f") as stream:
        stream.seek(25_000)
        assert stream.read(3) == bytes([168, 169, 170])
        stream.seek(-1, os.SEEK_END)
        assert stream.read() == b"\xff"


def test_upload_and_download_move_whole_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"x" * 100_000)
    store.upload(tmp_path / "here", "deep/there")
    store.download("deep/there", tmp_path / "sub" / "back")
    assert (tmp_path / "sub" / "back").read_bytes() == b"x" * 100_000


def test_a_missing_file_is_named(store: Store, tmp_path: Path) -> None:
    for action in (
        lambda: store.read("nope"),
        lambda: store.open("nope"),
        lambda: store.download("nope", tmp_path / "x"),
    ):
        with pytest.raises(StorageError, match=r"nope: it does not exist"):
            action()


def test_delete_tree_leaves_neighbours(store: Store) -> None:
    for path in ("a/1", "a/b/2", "ab/3"):
        store.write(path, b".")
    store.delete_tree("a")
    assert [e.path for e in store.files()] == ["ab/3"]
    store.delete("ab/3")
    store.delete("ab/3")


def test_replace_only_from_the_expected_value(store: Store) -> None:
    store.replace("current", b"1", None)
    with pytest.raises(ConflictError):
        store.replace("current", b"2", None)
    found = store.read_tagged("current")
    assert found is not None and found[0] == b"1"
    store.replace("current", b"2", found[1])
    with pytest.raises(ConflictError, match="changed by somebody else"):
        store.replace("current", b"3", found[1])
    assert store.read("current") == b"2"
    assert store.read_tagged("absent") is None


def test_of_many_writers_that_saw_the_same_value_one_wins(store: Store) -> None:
    store.replace("current", b"start", None)
    tag = store.read_tagged("current")[1]  # type: ignore[index]

    def attempt(number: int) -> bool:
        try:
            store.replace("current", str(number).encode(), tag)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert store.read("current") == str(won.index(True)).encode()


def test_stores_travel_to_other_processes(store: Store) -> None:
    store.write("f", b"1")
    assert pickle.loads(pickle.dumps(store)).child().read("f") == b"1"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.write("f", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full; free some space"):
        store.write("f", b"new")
    assert [(e.path, store.read(e.path)) for e in store.files()] == [("f", b"old")]


@pytest.mark.s3
def test_wrong_credentials_are_one_clear_line(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"refuses these credentials .*check AWS_ACCESS_KEY_ID") as caught:
        open_store(s3_uri).check_writable()
    assert "\n" not in str(caught.value)


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_uri: str) -> None:
    with pytest.raises(StorageError, match="no-such-bucket-anywhere"):
        open_store("s3://no-such-bucket-anywhere/x").read("f")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"file:// or s3://"):
        open_store("ftp://host/x")
    with pytest.raises(ConfigError, match="names no bucket"):
        open_store("s3://")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/dbs/emoji", ("s3://b/dbs", "emoji")),
        ("a/b/", ("a", "b")),
        ("emoji", (".", "emoji")),
        ("/x", ("/", "x")),
    ],
)
def test_a_uri_splits_into_parent_and_name(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts
