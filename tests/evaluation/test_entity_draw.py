"""The protocol of P2 on a cascade of random weights: every figure, plot and page is there, none drawn twice."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.errors import SourceError
from remembrandt.evaluation.entity_draw import EntityDraw, EntityDrawConfig
from remembrandt.generation.cascade import CascadeGenerator
from tests.support.models import save_tiny_cascade

pytestmark = pytest.mark.ray


@pytest.fixture
def values(emoji_like_database: str, tiny_clip: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(save_tiny_cascade(tmp_path / "cascade", tiny_clip)),
        "database": emoji_like_database,
        "out": str(tmp_path / "report"),
        "category": "style",
        "entities": 5,
        "templates": ["{}", "a drawing of a {}"],
        "best_of": 2,
        "ratios": [0.0, 1.0],
        "stages": [{"sampler": {"num_inference_steps": 2}}],
        "rated": 3,
    }


def test_every_claim_is_measured_once_and_shown(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(EntityDrawConfig, values, "test")
    protocol = EntityDraw(config)
    for entity in [*protocol.sets["frequent"], *protocol.sets["infrequent"]]:
        assert len(entity.references) == 2 and len(entity.rest) == 2
        assert not set(entity.references) & set(entity.rest), "no picture is both given and compared with"
    report = protocol.run()
    out = tmp_path / "report"
    assert report == json.loads((out / "report.json").read_text())
    for name in ("infrequent", "frequent"):
        for source in ("right", "none", "shuffled"):
            for target in ("entity", "text"):
                interval = report["retrieval"][f"{name}/{source}/{target}"]
                assert interval["count"] == 5 and interval["low"] <= interval["mean"] <= interval["high"]
                assert report["retrieval"][f"{name}/{source}/{target}, best"]["mean"] >= interval["mean"]
    assert report["retrieval"]["infrequent/right/entity"] != report["retrieval"]["infrequent/none/entity"]
    assert {key.split("/")[0] for key in report["neighbors"]} == {"1", "2"}, "four references are not to be had"
    assert {key.split("/")[0] for key in report["ratio"]} == {"0", "1"}
    assert {key.split("/")[0] for key in report["guidance"]} == {"interleaved", "weighted", "joint", "plain"}
    for plot in ("retrieval.png", "ratio.png"):
        assert Image.open(io.BytesIO((out / plot).read_bytes())).width > 400
    key, page = json.loads((out / "rating-key.json").read_text()), (out / "rating.html").read_text()
    assert len(key) == 6 and all(name in page for name in key)
    monkeypatch.setattr(CascadeGenerator, "generate", lambda *_: pytest.fail("a claim was measured twice"))
    assert EntityDraw(config).run() == report


def test_a_database_without_unseen_entities_is_refused(values: dict[str, Any]) -> None:
    config = parse_config(EntityDrawConfig, {**values, "infrequent": "nobody"}, "test")
    with pytest.raises(SourceError, match="has 0 entities of split 'nobody'"):
        EntityDraw(config)
