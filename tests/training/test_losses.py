"""The same losses however the work is spread, and as they were when this was written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.multiprocessing import ProcessRaisedException
from torch.utils.flop_counter import FlopCounterMode

from remembrandt.configuration import parse_config
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.diffusion.guidance import Context
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet, run_unet
from remembrandt.models.rdm.sampling import RdmSampler
from tests.support.ray_cluster import RayCluster
from tests.training.workers import train_all

pytestmark = pytest.mark.ray

PEAK = 1e12
GOLDEN = Path(__file__).parents[1] / "assets" / "losses" / "rdm-tiny.json"


@pytest.fixture
def precomputed(run_values: dict[str, Any], tmp_path: Path, ray_cluster: RayCluster) -> dict[str, Any]:
    """The run with neighbours from disk."""
    return with_precomputed(run_values, tmp_path)


def with_precomputed(run_values: dict[str, Any], tmp_path: Path, **search: Any) -> dict[str, Any]:
    """Computes the neighbours of a run, which may take those of other searches as well."""
    rows = run_values["train_set"]
    values = {
        "database": rows["uri"],
        "train_set": {"kind": "database", **rows},
        "out": str(tmp_path / "neighbors"),
        "search": {"num_neighbors": 3, **search},
        "workers": {"searchers": 1},
    }
    precompute_neighbors(parse_config(PrecomputeConfig, values, "test"))
    changed = {**search, "mode": "precomputed", "precomputed": values["out"], "pool": {}}
    neighbors = {**run_values["neighbors"], **changed}
    return {**run_values, "neighbors": neighbors}


def variant(values: dict[str, Any], name: str, **loop: Any) -> dict[str, Any]:
    """The same run under another name, with other settings of the loop."""
    output = f"{values['output']}-{name}"
    return {**values, "name": name, "output": output, "loop": {**values["loop"], **loop}}


@pytest.mark.timeout(600)
def test_zero_stages_and_workers_give_the_same_losses(
    precomputed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    single = [variant(precomputed, f"one-{stage}", zero_stage=stage) for stage in range(4)]
    # Whether the passes are counted changes nothing, either.
    parts = variant(precomputed, "parts", accumulation=2, peak_flops=PEAK)
    double = [
        variant(precomputed, f"two-{stage}", zero_stage=stage, workers=2, peak_flops=PEAK if stage == 3 else None)
        for stage in range(4)
    ]
    lower = [
        variant(precomputed, f"{name}-{stage}", precision=name, zero_stage=stage)
        for name, stage in (("bf16", 0), ("bf16", 2), ("autocast", 2))
    ]
    whole = [*single, parts]
    losses = train_all([*whole, *lower], 1)
    rounded, losses = losses[len(whole) :], losses[: len(whole)] + train_all(double, 2)
    golden = json.loads(GOLDEN.read_text())["losses"]
    for found, values in zip(losses, [*whole, *double], strict=True):
        assert len(found) == 12
        np.testing.assert_allclose(found, golden, rtol=2e-4, err_msg=values["name"])
    for found, values in zip(rounded, lower, strict=True):
        np.testing.assert_allclose(found, golden, rtol=0.03, err_msg=values["name"])
        assert found != losses[0], f"{values['name']} rounds"
    assert sum(losses[0][-4:]) < sum(losses[0][:4]), "it learns"
    assert not (tmp_path / "compiled").exists(), "DeepSpeed compiles nothing"
    assert figures_of(single[0], "model_flop_utilisation") == []
    for values in (parts, double[3]):
        rates, shares = (figures_of(values, name) for name in ("images_per_second", "model_flop_utilisation"))
        flops_per_image = np.array(shares) / np.array(rates) * PEAK * values["loop"].get("workers", 1)
        np.testing.assert_allclose(flops_per_image, flops_of_an_image(values), rtol=1e-3)
    weights = [RdmSampler.load(values["output"]).unet.state_dict() for values in (single[0], single[3], double[2])]
    for name, weight in weights[0].items():
        for other in weights[1:]:
            np.testing.assert_allclose(other[name], weight, atol=2e-3, err_msg=name)


def figures_of(values: dict[str, Any], name: str) -> list[float]:
    """What TensorBoard was told."""
    events = EventAccumulator(f"{values['storage']}/{values['name']}/tensorboard")
    events.Reload()
    return [event.value for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []


def flops_of_an_image(values: dict[str, Any]) -> float:
    """Three forward passes of its network."""
    config = RdmConfig.model_validate(values["model"])
    latents_BCHW = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size)
    context = Context(torch.zeros(1, values["neighbors"]["num_neighbors"], config.context_dim))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run_unet(build_unet(config), latents_BCHW, torch.zeros(1).long(), context)
    return 3 * counter.get_total_flops()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_diverges_says_so_and_keeps_nothing(precomputed: dict[str, Any], precision: str) -> None:
    steep = {"learning_rate": 1e30, "warmup": 0, "schedule": "constant"}
    run = variant(precomputed, f"steep-{precision}", precision=precision, optimizer=steep, checkpoint_every=1)
    with pytest.raises(ProcessRaisedException, match=f"steep-{precision} diverges: in step 1 .* lower loop.optimizer"):
        train_all([run], 1)
    assert sorted(path.name for path in Path(run["storage"], "checkpoints", run["name"]).iterdir()) == ["1"]


@pytest.mark.timeout(300)
def test_live_neighbours_give_the_losses_of_precomputed_ones_to_the_last_digit(
    run_values: dict[str, Any], tmp_path: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.environment["RAY_ADDRESS"])
    same = {"column": "style", "share": 0.5}
    disk = variant(with_precomputed(run_values, tmp_path, same=same), "precomputed", steps=50)
    live = variant({**run_values, "neighbors": {**run_values["neighbors"], "same": same}}, "live", steps=50)
    precomputed, alive, plain = train_all([disk, live, variant(run_values, "plain", steps=50)], 1)
    assert len(alive) == 50 and alive == precomputed
    assert alive != plain, "which neighbours an example has does matter"
