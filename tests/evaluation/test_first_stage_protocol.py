"""Reconstructions are measured where they are asked for, by group, with a page that shows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.databases.database import Database
from remembrandt.errors import ConfigError, SourceError
from remembrandt.evaluation.first_stage import FirstStageProtocol, FirstStageProtocolConfig
from tests.support.models import tiny_first_stage

pytestmark = pytest.mark.ray


@pytest.fixture
def values(emoji_like_database: str, tmp_path: Path) -> dict[str, Any]:
    tiny_first_stage().save(tmp_path / "stage")
    return {
        "model": str(tmp_path / "stage"), "database": emoji_like_database, "out": str(tmp_path / "report"), "batch": 16,
    }  # fmt: skip


def test_unseen_pictures_are_measured_by_style(values: dict[str, Any], tmp_path: Path) -> None:
    report = FirstStageProtocol(parse_config(FirstStageProtocolConfig, values, "test")).run()
    assert report == json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["psnr"]["count"] == 64 and sorted(report["groups"]) == ["filled", "outline", "small", "striped"]
    assert report["psnr"]["mean"] < 20 and report["st-lpips"]["mean"] > 0.05, "random weights give nothing back"
    means = [group["psnr"]["mean"] for group in report["groups"].values()]
    assert sum(means) / 4 == pytest.approx(report["psnr"]["mean"])
    assert (tmp_path / "report" / "page.html").read_text().count("reconstruction") >= 16


def test_rows_without_a_picture_are_left_out(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read = Database.images

    def some(database: Database, ids: list[int]) -> list[Image.Image | None]:
        return [image if row % 4 else None for row, image in zip(ids, read(database, ids), strict=True)]

    monkeypatch.setattr(Database, "images", some)
    report = FirstStageProtocol(parse_config(FirstStageProtocolConfig, values, "test")).run()
    assert report["psnr"]["count"] == sum(group["psnr"]["count"] for group in report["groups"].values()) == 48


def test_an_impossible_size_is_one_line(values: dict[str, Any]) -> None:
    config = parse_config(FirstStageProtocolConfig, {**values, "size": 17}, "test")
    with pytest.raises(ConfigError, match="size 17 is no multiple of 2"):
        FirstStageProtocol(config)


def test_no_such_rows_is_one_line(values: dict[str, Any]) -> None:
    config = parse_config(FirstStageProtocolConfig, {**values, "where": {"style": ["none"]}}, "test")
    with pytest.raises(SourceError, match="0 rows of"):
        FirstStageProtocol(config).run()
