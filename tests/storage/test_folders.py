"""Folders of remote stores are copied once for each state that they are in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from remembrandt.errors import ConfigError, StorageError
from remembrandt.generation.models import model_folder
from remembrandt.storage import Store, open_store
from remembrandt.storage.folders import CACHE_VARIABLE, cache_folder, gigabytes, local_folder, write_cached
from tests.support.models import save_tiny_rdm


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path == local_folder(f"file://{tmp_path}")
    assert local_folder("rdm-small") == Path("rdm-small")


@pytest.mark.s3
def test_a_remote_folder_is_copied_once_and_anew_when_it_changes(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3_uri)
    store.write("a/weights", b"one")
    store.write("facts", b"{}")
    first = local_folder(s3_uri)
    assert {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()} == {"a/weights", "facts"}
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "download", lambda *_: pytest.fail("copied twice"))
        assert local_folder(s3_uri) == first
    store.write("a/weights", b"two")
    assert (local_folder(s3_uri) / "a" / "weights").read_bytes() == b"two"
    assert sorted(path.name for path in first.parent.iterdir()) == sorted({first.name, local_folder(s3_uri).name})


@pytest.mark.s3
def test_a_model_on_s3_opens_by_its_uri(s3_uri: str, tmp_path: Path) -> None:
    folder = save_tiny_rdm(tmp_path / "model")
    store: Store = open_store(s3_uri)
    for path in filter(Path.is_file, folder.rglob("*")):
        store.upload(path, path.relative_to(folder).as_posix())
    found = model_folder(s3_uri)
    assert (found / "unet" / "config.json").read_bytes() == (folder / "unet" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="there is nothing at"):
        model_folder(f"{s3_uri}/elsewhere")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=rf"cannot write the cache .*{CACHE_VARIABLE} names another place"):
        write_cached(cache_folder() / "embeddings" / "x", [memoryview(b"x")])
    monkeypatch.setenv("REMEMBRANDT_TEXT_CACHE_GB", "many")
    with pytest.raises(ConfigError, match="REMEMBRANDT_TEXT_CACHE_GB is 'many': set it to a number of gigabytes"):
        gigabytes("REMEMBRANDT_TEXT_CACHE_GB", 4)


def test_a_cached_file_is_whole_or_absent(tmp_path: Path) -> None:
    def breaks_off() -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise RuntimeError("the disk of the source")

    target = cache_folder() / "embeddings" / "x"
    with pytest.raises(RuntimeError, match="the disk of the source"):
        write_cached(target, breaks_off())
    assert list(target.parent.iterdir()) == []
    write_cached(target, [memoryview(b"who"), memoryview(b"le")])
    assert target.read_bytes() == b"whole" and list(target.parent.iterdir()) == [target]
