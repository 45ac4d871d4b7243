"""Neighbours' VQGAN codes in place of their CLIP embeddings (P1 App. F.3.5), from training to pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remembrandt.configuration import parse_config
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.generation import DatabaseRef, Generator, PictureRequest
from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, with_scale
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.retrieval import parse_strategy
from remembrandt.training.rdm import TrainRdmConfig, train_rdm
from tests.support.ray_cluster import RayCluster
from tests.training.workers import train_all

pytestmark = pytest.mark.ray


@pytest.fixture
def values(run_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run whose context is 4 × 4 codes of 8 channels, two neighbours side by side."""
    torch.manual_seed(0)
    shape = FirstStageConfig(
        kind="vq", size=16, channels=(16, 16, 16), layers=1, latent_channels=8, middle_attention=False
    )
    FirstStage(with_scale(build_autoencoder(shape), 1.0)).save(tmp_path / "phi")
    model = {**run_values["model"], "codes_size": 16, "context_dim": 16}
    return {**run_values, "codes": str(tmp_path / "phi"), "model": model}


@pytest.mark.slow
def test_a_model_learns_from_codes_and_paints_from_pictures(
    values: dict[str, Any], ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    (losses,) = train_all([values], 1)
    assert len(losses) == 12 and sum(losses[-4:]) < sum(losses[:4])
    generator = Generator(RdmSampler.load(values["output"]), "codes")
    database = DatabaseRef(uri=values["train_set"]["uri"])

    def paint(ids: list[int], strategy: str = "exemplars") -> np.ndarray[Any, Any]:
        request = PictureRequest(
            text="a red star",
            database=database,
            strategy=parse_strategy({"name": strategy, **({"ids": ids} if strategy == "exemplars" else {})}),
            sampler=SamplerConfig(solver="dpm_solver++", num_inference_steps=3),
        )
        return np.asarray(generator.generate([request])[0].image)

    assert (paint([3, 90]) == paint([3, 90])).all()
    assert (paint([3, 90]) != paint([5, 200])).any()
    with pytest.raises(ConfigError, match="conditioned on the pictures of 2 neighbours"):
        paint([1, 2, 3])
    with pytest.raises(ConfigError, match="strategy 'text' gives something else"):
        paint([], "text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": None}, "go together"),
        ({"codes": "/nowhere"}, "there is no model at /nowhere"),
        ({"model": {"context_dim": 64}}, "the codes of 2 neighbours have 16 channels"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str, values: dict[str, Any]) -> None:
    changed = {k: {**values[k], **v} if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(ConfigError, match=message):
        train_rdm(parse_config(TrainRdmConfig, {**values, **changed}, "test"), dry_run=True)
