"""The command `remembrandt` as a shell sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.manifest import MANIFEST, Manifest, SourceInfo, encode_document


def remembrandt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remembrandt", *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_names_the_commands_and_imports_no_heavy_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from remembrandt.cli import app;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "print(sorted({'torch', 'ray', 'lance'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert all(f" {name} " in done.stdout for name in ("search", "db", "datasets"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_names_the_nearest_and_fails() -> None:
    done = remembrandt("serch", "somewhere", "cat")
    assert done.returncode == 2
    assert "'search'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("datasets", "prepare", "emojis", "--out", "/tmp/nowhere"),
        ("db", "list", "/nowhere/at/all"),
        ("search", "/nowhere/at/all", "a cat"),
    ],
)
def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = remembrandt(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_json_is_all_that_stands_on_stdout() -> None:
    done = remembrandt("datasets", "list", "--json")
    assert {dataset["name"] for dataset in json.loads(done.stdout)} >= {"emoji", "gcompris", "wesnoth", "taxon"}


def test_versions_that_are_not_live_are_listed(tmp_path: Path) -> None:
    catalog = Catalog.open(str(tmp_path / "texts"))
    none = dict.fromkeys(("dim", "encoder", "vectors", "bm25", "recall"))
    empty: dict[str, object] = {"fields": (), "licences": {}, "planned": {}, "actual": {}, "config": {}, "files": ()}
    manifest = Manifest(
        name="texts",
        version="v1",
        created_at="2026-01-01T00:00:00+00:00",
        created_by={"user": "somebody"},
        rows=1,
        source=SourceInfo(config={}, fingerprint="f", records=1, failed=0),
        **none,
        **empty,
    )
    catalog.version_store("v1").write(MANIFEST, encode_document(manifest))
    done = remembrandt("db", "list", catalog.store.uri)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("  v1  2026-01-01")
