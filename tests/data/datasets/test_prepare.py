"""Writing a data set: the same bytes each time, continued after a kill, never mixed with another."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remembrandt.data.datasets.content import Content, Sample, TarContent, UnusableItemError, tar_bytes
from remembrandt.data.datasets.prepare import prepare
from remembrandt.errors import ConfigError, StorageError
from remembrandt.storage import open_store

# A process that prepares five shards of four rows and is killed while it makes the one that its argument names.
KILLED = """
import os, signal, sys
from tests.data.datasets.test_prepare import Numbers
from remembrandt.data.datasets.prepare import prepare
from remembrandt.storage import open_store
prepare(Numbers(kill_at=sys.argv[2]), open_store(sys.argv[1]))
"""


@dataclass(frozen=True)
class Numbers:
    """Twenty rows; `kill_at` is the key at which the process ends as in a power cut, `made` lists the keys made."""

    revision: int = 1
    kill_at: str | None = None
    made: list[str] | None = None
    name: str = "numbers"

    def request(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}

    def open(self) -> Content:
        keys = [f"{number:02d}" for number in range(20)]
        return TarContent(keys, self._make, {"numbers": "1.0"}, shard_rows=4)

    def _make(self, key: str) -> Sample:
        if key == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.made is not None:
            self.made.append(key)
        if key == "13":
            raise UnusableItemError("unlucky")
        fields = {"caption": f"number {key}", "style": "digits", "licence": "MIT", "artist": "Al", "split": "train"}
        return Sample(key, key.encode() * 100, "png", fields)


class Unopened(Numbers):
    """A recipe whose packages must not be fetched."""

    def open(self) -> Content:
        raise AssertionError("opened although the data set is finished")


Digests = Callable[[Path], dict[str, bytes]]


def test_two_runs_write_the_same_bytes(tmp_path: Path, digests: Digests) -> None:
    for name in ("a", "b"):
        prepare(Numbers(), open_store(tmp_path / name))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert sorted(digests(tmp_path / "a")) == [*(f"{number:05d}.tar" for number in range(5)), "dataset.json"]


def test_shards_hold_sorted_members_without_times_or_owners() -> None:
    samples = [Sample(key, b"image", "webp", {"caption": f"the {key}"}) for key in ("b", "a")]
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(samples))) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["a.json", "a.txt", "a.webp", "b.json", "b.txt", "b.webp"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


@pytest.mark.parametrize("key", ["00", "09", "19"])
def test_a_killed_run_continues_to_the_same_bytes(key: str, tmp_path: Path, digests: Digests) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), key]
    root = Path(__file__).parents[3]
    killed = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/dataset.json").exists()
    made: list[str] = []
    prepare(Numbers(made=made), open_store(tmp_path / "killed"))
    prepare(Numbers(), open_store(tmp_path / "undisturbed"))
    assert made == [f"{number:02d}" for number in range(int(key) // 4 * 4, 20)]
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")


def test_a_finished_data_set_is_returned_without_fetching_anything(tmp_path: Path) -> None:
    summary = prepare(Numbers(), open_store(tmp_path))
    assert prepare(Unopened(), open_store(tmp_path)) == summary


def test_the_summary_counts_rows_and_names_what_was_left_out(tmp_path: Path) -> None:
    summary = prepare(Numbers(), open_store(tmp_path))
    assert summary == json.loads((tmp_path / "dataset.json").read_text())
    assert (summary["rows"], summary["skipped"]) == (19, {"13": "unlucky"})
    assert (
        summary["styles"] == {"digits": 19} and summary["licences"] == {"MIT": 19} and summary["artists"] == {"Al": 19}
    )
    assert summary["versions"] == {"numbers": "1.0"} and len(summary["files"]) == 5


def test_a_place_with_another_data_set_is_refused_and_left_alone(tmp_path: Path, digests: Digests) -> None:
    prepare(Numbers(), open_store(tmp_path))
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match=r"already holds 'numbers' prepared with another revision") as error:
        prepare(Numbers(revision=2), open_store(tmp_path))
    assert "\n" not in str(error.value) and digests(tmp_path) == before


def test_a_place_with_an_unfinished_run_of_other_options_is_refused(tmp_path: Path) -> None:
    prepare(Numbers(), open_store(tmp_path))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ConfigError, match="unfinished data set that was started with other options"):
        prepare(Numbers(revision=2), open_store(tmp_path))


def test_a_foreign_dataset_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ConfigError, match="was not written by this command"):
        prepare(Numbers(), open_store(tmp_path))


def test_a_place_that_is_a_file_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file") as error:
        prepare(Unopened(), open_store(tmp_path / "file" / "out"))
    assert "\n" not in str(error.value)


@pytest.mark.s3
def test_an_s3_server_receives_the_same_files(s3_uri: str, tmp_path: Path, digests: Digests) -> None:
    prepare(Numbers(), open_store(s3_uri))
    prepare(Numbers(), open_store(tmp_path))
    store = open_store(s3_uri)
    assert {name: store.read(name) for name in digests(tmp_path)} == digests(tmp_path)
    assert prepare(Unopened(), store)["rows"] == 19
