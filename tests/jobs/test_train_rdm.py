"""`jobs/train_first_stage.py` and `jobs/train_rdm.py` as a person runs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from remembrandt.configuration import parse_config
from remembrandt.errors import ConfigError, RemembrandtError
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.training.journal import read_journal
from remembrandt.training.rdm import TrainRdmConfig, train_rdm
from tests.support.builds import REPOSITORY
from tests.support.models import TINY_FIRST_STAGE, TINY_RDM, save_tiny_rdm, tiny_first_stage
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.ray


@pytest.fixture
def first_stage_values(emoji_like_database: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "stage",
        "storage": str(tmp_path / "runs"),
        "output": str(tmp_path / "stage"),
        "train_set": {"uri": emoji_like_database},
        "cache": str(tmp_path / "cache"),
        "model": {**TINY_FIRST_STAGE.model_dump(mode="json"), "size": 32},
        "loss": {"perceptual": 0.0, "adversarial": 0.1, "adversarial_from": 2},
        "loop": {
            "steps": 6, "batch_size": 8, "precision": "fp32", "log_every": 3, "checkpoint_every": 3, "sample_every": 6,
            "samples": 4, "optimizer": {"learning_rate": 1e-3},
        },
    }  # fmt: skip


@pytest.fixture
def values(emoji_like_database: str, tmp_path: Path) -> dict[str, Any]:
    stage = tmp_path / "first-stage"
    tiny_first_stage().save(stage)
    rows = {"uri": emoji_like_database}
    return {
        "name": "rdm",
        "storage": str(tmp_path / "runs"),
        "output": str(tmp_path / "rdm"),
        "first_stage": str(stage),
        "train_set": rows,
        "neighbors": {"database": rows, "num_neighbors": 2, "pool": {"num_cpus": 0.1}},
        "allow_overlap": True,
        "cache": str(tmp_path / "cache"),
        "model": {**TINY_RDM.model_dump(mode="json"), "context_dim": 64},
        "loop": {
            "steps": 6, "batch_size": 8, "workers": 2, "zero_stage": 2, "precision": "autocast", "log_every": 2,
            "checkpoint_every": 3, "sample_every": 6, "samples": 4,
        },
    }  # fmt: skip


def run(
    job: str, values: dict[str, Any], cluster: RayCluster, tmp_path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    config = tmp_path / f"{job}.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), "--config", str(config), *arguments]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=580)


@pytest.mark.slow
def test_a_first_stage_is_trained_beside_a_critic(
    first_stage_values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path
) -> None:
    done = run("train_first_stage", first_stage_values, ray_cluster, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6
    stage = FirstStage.load(first_stage_values["output"])
    assert stage.factor == 2 and stage.scale > 0 and stage.scale != 1.0
    journal = read_journal(f"{first_stage_values['storage']}/stage")
    assert [line["step"] for line in journal] == list(range(6))
    assert "adversarial" not in journal[1] and "adversarial" in journal[2]
    assert (tmp_path / "runs" / "stage" / "samples" / "step-000000006.png").is_file()
    assert list((tmp_path / "runs" / "stage" / "tensorboard").iterdir())


@pytest.mark.s3
@pytest.mark.timeout(1200)
def test_rdm_is_trained_on_two_workers_with_everything_on_s3(
    values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path, s3_uri: str
) -> None:
    values |= {"storage": f"{s3_uri}/runs", "output": str(tmp_path / "rdm"), "cache": f"{s3_uri}/cache"}
    done = run("train_rdm", values, ray_cluster, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples_seen"] == 48
    sampler = RdmSampler.load(values["output"])
    assert sampler.facts["num_neighbors"] == 2 and sampler.facts["encoder"]["weights_sha256"]
    first = read_journal(f"{s3_uri}/runs/rdm")
    # The same command with more steps goes on from the checkpoint, which lies on S3 only.
    more = {**values, "loop": {**values["loop"], "steps": 8}}
    again = run("train_rdm", more, ray_cluster, tmp_path)
    assert again.returncode == 0, again.stderr
    journal = read_journal(f"{s3_uri}/runs/rdm")
    assert [line["step"] for line in journal] == list(range(8)) and journal[:6] == first


def test_a_dry_run_trains_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    plan = train_rdm(parse_config(TrainRdmConfig, values, "rdm.yaml"), dry_run=True)
    assert plan["examples"] == 320 and plan["database_rows"] == 320 and plan["parameters"] > 10_000
    assert not list((tmp_path / "rdm").glob("*"))


def test_a_filter_that_leaves_too_few_neighbours_is_refused(values: dict[str, Any]) -> None:
    values["neighbors"]["database"] = {**values["neighbors"]["database"], "where": {"style": ["none of them"]}}
    with pytest.raises(ConfigError, match=r"has 0 rows that have style=none of them: change neighbors.database.where"):
        train_rdm(parse_config(TrainRdmConfig, values, "rdm.yaml"), dry_run=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allow_overlap": False}, "320 of 320 training images are in the database as well"),
        ({"first_stage": "/nowhere"}, "there is no model at /nowhere"),
        ({"model": {"latent_channels": 3}}, "has 4 latent channels, and model.latent_channels is 3"),
        ({"model": {"context_dim": 32}}, "set it to 64"),
        ({"model": {"condition": "none"}}, "'none' takes none"),
        ({"neighbors": {"num_neighbors": 999}}, "has 320 rows"),
        ({"neighbors": {"mode": "precomputed"}}, "the place of the neighbours"),
        ({"neighbors": {"mode": "precomputed", "precomputed": "/nowhere", "pool": {}}}, "no finished neighbours"),
        ({"train_set": {"where": {"styl": ["line"]}}}, "did you mean 'style'?"),
        ({"train_set": {"where": {"style": ["none of them"]}}}, "no row of"),
        ({"train_set": {"uri": "/nowhere/drawings"}}, "/nowhere/drawings"),
        ({"loop": {"batch_size": 7}}, "multiple of workers"),
        ({"loop": {"init_from": "/nowhere"}}, "there is no model at /nowhere"),
        ({"loop": {"step": 3}}, "did you mean 'steps'?"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_computed(
    change: dict[str, Any], message: str, values: dict[str, Any], tmp_path: Path
) -> None:
    changed = {k: {**values[k], **v} if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(RemembrandtError) as caught:
        train_rdm(parse_config(TrainRdmConfig, {**values, **changed}, "rdm.yaml"), dry_run=True)
    assert message in str(caught.value)


@pytest.mark.slow
def test_training_starts_from_a_finished_model(values: dict[str, Any], ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = TINY_RDM.model_copy(update={"context_dim": 64})
    start = save_tiny_rdm(tmp_path / "start", config)
    values["loop"] |= {
        "workers": 1, "zero_stage": 0, "steps": 1, "sample_every": 0, "init_from": str(start), "ema": 0.0,
        "optimizer": {"learning_rate": 1e-12, "weight_decay": 0.0},
    }  # fmt: skip
    done = run("train_rdm", values, ray_cluster, tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (RdmSampler.load(folder).unet.state_dict() for folder in (start, values["output"]))
    assert all(bool((before[name] - after[name]).abs().max() < 1e-6) for name in before)
