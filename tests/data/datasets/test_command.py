"""`remembrandt datasets`: results on stdout, progress on stderr, mistakes as errors of ours."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remembrandt.cli.datasets import datasets_app
from remembrandt.errors import ConfigError

runner = CliRunner()


def test_list_names_every_data_set() -> None:
    rows = json.loads(runner.invoke(datasets_app, ["list", "--json"]).stdout)
    assert [row["name"] for row in rows] == ["emoji", "gcompris", "wesnoth", "taxon", "taxon-names"]


def test_prepare_prints_the_summary_as_json_alone(emoji_packages: Path, tmp_path: Path) -> None:
    arguments = ["prepare", "emoji", "--out", str(tmp_path / "out"), "--styles", "noto, openmoji", "--limit", "5"]
    result = runner.invoke(datasets_app, [*arguments, "--size", "32", "--json"])
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "out/dataset.json").read_text())
    assert summary["rows"] + len(summary["skipped"]) == 5 and summary["request"]["size"] == 32


def test_prepare_says_rows_styles_and_licences(emoji_packages: Path, tmp_path: Path) -> None:
    arguments = ["prepare", "emoji", "--out", str(tmp_path / "out"), "--styles", "noto", "--variants"]
    result = runner.invoke(datasets_app, arguments)
    assert result.exit_code == 0 and "emoji: 9 rows" in result.stdout
    assert "licences: Apache-2.0 9" in result.stdout and "left out: 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emojii"], "unknown data set 'emojii': did you mean 'emoji'?"),
        (["wesnoth", "--styles", "noto"], "'wesnoth' has no option --styles: it takes --limit"),
        (["taxon", "--variants"], "'taxon' has no option --variants: it takes --limit"),
        (["emoji", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["emoji", "--styles", ""], "no emoji style is chosen"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(datasets_app, ["prepare", *arguments, "--out", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception) and "\n" not in str(result.exception)


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(datasets_app, ["prepare", "emoji", "--out", "ftp://somewhere/data"])
    assert isinstance(result.exception, ConfigError) and "file:// or s3://" in str(result.exception)
