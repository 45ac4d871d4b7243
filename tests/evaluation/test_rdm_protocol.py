"""Every claim of the protocol is measured on a model of random weights: figures are complete, and none is invented."""

import json
from pathlib import Path
from typing import Any

import pytest

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.errors import ConfigError, SourceError
from remembrandt.evaluation.rdm import RdmProtocol, RdmProtocolConfig
from remembrandt.models.rdm.sampling import RdmSampler
from tests.support.models import TINY_RDM, save_tiny_rdm
from tests.support.ray_cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.network]
MODEL = TINY_RDM.model_copy(update={"context_dim": 64})


@pytest.fixture(scope="module")
def drawings(
    _session_ray_cluster: RayCluster, build_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A database with a proposal."""
    _session_ray_cluster.connect()
    uri = str(tmp_path_factory.mktemp("databases") / "drawings")
    neighbors = {"train_set": "self", "num_neighbors": 4}
    build_database(parse_config(BuildConfig, {**build_values, "uri": uri, "neighbors": neighbors}, "test"))
    return uri


@pytest.fixture
def values(drawings: str, tmp_path: Path) -> dict[str, Any]:
    with Database.open(drawings) as database:
        model = save_tiny_rdm(tmp_path / "rdm", MODEL, encoder=database.manifest.encoder)
    baseline = save_tiny_rdm(tmp_path / "ldm", MODEL.model_copy(update={"condition": "none"}))
    return {
        "model": str(model),
        "baseline": str(baseline),
        "database": drawings,
        "out": str(tmp_path / "report"),
        "entities": 6,
        "per_entity": 2,
        "parts": [["filled", "small"], ["outline"]],
        "top_m": [0.01, 1.0],
        "unconditional": 20,
        "scales": [1.0, 2.0],
        "sampler": {"solver": "dpm_solver++", "num_inference_steps": 2},
    }


def test_all_claims_are_measured_shown_and_not_measured_twice(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(RdmProtocolConfig, values, "test")
    report = RdmProtocol(config).run()
    assert report == json.loads((tmp_path / "report" / "report.json").read_text())
    neighbours = report["neighbours"]
    assert neighbours["entities"] == 6
    for kind in ("right/images", "shuffled/images", "right/text", "shuffled/text"):
        interval = neighbours[kind]
        assert -1 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1 and interval["count"] == 6
    swap = report["swap"]
    assert swap["probe_accuracy_on_drawings"] > 0.8, "drawings of these styles are easily told apart"
    for part in ("D", "D′"):
        assert 0 <= swap[f"taken_for_D′_from_{part}"]["mean"] <= 1
    qualities = [
        report["top_m"]["0.01"],
        report["top_m"]["1"],
        report["baseline"]["RDM"],
        report["baseline"]["baseline"],
    ]
    for quality in qualities:
        assert quality["frechet_distance_mobilenet"] > 1, "random weights draw noise"
        for space in ("mobilenet", "clip"):
            for share in (quality[space]["precision"], quality[space]["recall"]):
                assert 0 <= share["low"] <= share["mean"] <= share["high"] <= 1
    assert set(report["guidance"]) == {"entities", "1", "2"}
    pages = sorted(path.stem for path in (tmp_path / "report" / "parts").glob("*.html"))
    assert pages == ["baseline", "guidance", "neighbours", "swap", "top_m"]
    monkeypatch.setattr(RdmSampler, "sample", lambda *_: pytest.fail("a claim was measured twice"))
    assert RdmProtocol(config).run() == report
    for change in ({"seed": 1}, {"model": values["baseline"]}):
        other = config.model_copy(update=change)
        with pytest.raises(ConfigError, match="holds figures of another model, database or configuration"):
            RdmProtocol(other).run()


def test_a_database_without_unseen_entities_is_refused(values: dict[str, Any]) -> None:
    config = parse_config(RdmProtocolConfig, {**values, "held_out": "nobody"}, "test")
    with pytest.raises(SourceError, match="has 0 entities of split 'nobody'"):
        RdmProtocol(config).run()
