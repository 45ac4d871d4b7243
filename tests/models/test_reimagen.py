"""The Re-Imagen stages: sizes, what conditions do and do not, and neighbours that are encoded once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from remembrandt.diffusion.guidance import MixedGuidance, Passes, TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig, sample
from remembrandt.errors import ConfigError, CorruptionError
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import LowRes, Neighbors, ReImagenUNet, Text
from remembrandt.models.reimagen.objective import StageLossConfig, StageObjective
from remembrandt.models.reimagen.sampling import Cascade, StageBatch, StageSampler, StageSettings, save_stage
from tests.support.models import TINY_BASE, TINY_SUPER, tiny_stage

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "train_reimagen"
L, D, K = 5, 12, 2


def text(count: int, *more: int, seed: int = 0) -> Text:
    generator = torch.Generator().manual_seed(seed)
    return Text(torch.randn(count, *more, L, D, generator=generator), torch.ones(count, *more, L, dtype=torch.bool))


def neighbors(count: int, edge: int, k: int = K, seed: int = 0) -> Neighbors:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, k, 3, edge, edge, generator=generator) * 2 - 1
    return Neighbors(pixels, text(count, k, seed=seed + 1), torch.ones(count, k, dtype=torch.bool))


@pytest.mark.parametrize(
    ("file", "stage", "millions"),
    [
        ("re-imagen.yaml", "64", 2500),
        ("re-imagen-small.yaml", "64", 1400),
        ("re-imagen.yaml", "256", 750),
        ("re-imagen.yaml", "1024", 400),
    ],
)
def test_the_networks_have_the_papers_sizes(file: str, stage: str, millions: float) -> None:
    stages = yaml.safe_load((CONFIGS / file).read_text())["stages"]
    config = StageConfig.model_validate({str(k): v for k, v in stages.items()}[stage]["model"])
    with torch.device("meta"):
        found = sum(p.numel() for p in ReImagenUNet(config).parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.03)


@torch.no_grad()
def test_every_condition_matters_and_a_dropped_one_does_not() -> None:
    network = tiny_stage(TINY_SUPER)
    x, t, edge = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.9]), TINY_SUPER.size
    low = LowRes(torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.2]))
    words, pairs = text(2), neighbors(2, edge)
    base = network(x, t, words, pairs, low)
    assert base.shape == x.shape
    changes = [
        (x, t, text(2, seed=9), pairs, low),
        (x, t, words, replace(pairs, pixels_BKCHW=-pairs.pixels_BKCHW), low),
        (x, t, words, replace(pairs, text=text(2, K, seed=9)), low),
        (x, t, words, pairs, LowRes(-low.pixels_BCHW, low.noise_B)),
        (x, t, words, pairs, LowRes(low.pixels_BCHW, 1 - low.noise_B)),
        (x, 1 - t, words, pairs, low),
    ]
    for arguments in changes:
        assert (network(*arguments) - base).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    nothing = torch.zeros(2, dtype=torch.bool)
    no_text = network(x, t, words.kept(nothing), pairs, low)
    assert torch.allclose(no_text, network(x, t, text(2, seed=9).kept(nothing), pairs, low))
    gone = replace(pairs, mask_BK=pairs.mask_BK & False)
    other = replace(neighbors(2, edge, seed=5), mask_BK=gone.mask_BK)
    assert torch.allclose(network(x, t, words, gone, low), network(x, t, words, other, low), atol=1e-6)
    assert not torch.allclose(network(x, t, words, gone, low), base, atol=1e-4) and no_text.isfinite().all()


@torch.no_grad()
@given(st.integers(1, 4), st.data())
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(k: int, data: st.DataObject) -> None:
    network = tiny_stage(TINY_BASE)
    there = data.draw(st.lists(st.booleans(), min_size=k, max_size=k))
    pairs = neighbors(1, TINY_BASE.size, k)
    padded = replace(pairs, mask_BK=torch.tensor([there]))
    chosen = [n for n in range(k) if there[n]]
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    found = network(x, t, text(1), padded)
    if not chosen:
        assert torch.isfinite(found).all()
        return
    small = Neighbors(pairs.pixels_BKCHW[:, chosen], Text(*(v[:, chosen] for v in vars(pairs.text).values())),
                      torch.ones(1, len(chosen), dtype=torch.bool))  # fmt: skip
    assert torch.allclose(found, network(x, t, text(1), small), atol=1e-5)
    longer = Text(torch.cat([text(1).tokens, torch.randn(1, 3, D)], 1), torch.tensor([[True] * L + [False] * 3]))
    assert torch.allclose(found, network(x, t, longer, padded), atol=1e-5)


def batch(count: int, edge: int, low: int | None = None, **changes: Any) -> StageBatch:
    kinds = ["interleaved", "weighted", "joint", "plain"]
    chosen = tuple(
        StageSettings(
            TextNeighborGuidance(kind=kinds[n % 4], text_weight=2.5, neighbor_weight=1.5),  # type: ignore[arg-type]
            SamplerConfig(num_inference_steps=8 + n % 2),
        )
        for n in range(count)
    )
    pictures = None if low is None else torch.rand(count, 3, low, low, generator=torch.Generator().manual_seed(3))
    values = {"text": text(count), "neighbors": neighbors(count, edge), "low_res_BCHW": pictures} | changes
    return StageBatch(seeds_B=tuple(range(count)), settings_B=chosen, **values)


@pytest.mark.parametrize(("config", "low"), [(TINY_BASE, None), (TINY_SUPER, 8)])
def test_neighbours_encoded_once_give_the_same_pictures(config: StageConfig, low: int | None) -> None:
    sampler = StageSampler(tiny_stage(config), {})
    asked = batch(4, config.size, low)
    once, anew = sampler.sample(asked), sampler.sample(asked, reuse_neighbors=False)
    assert once.shape == (4, 3, config.size, config.size) and torch.allclose(once, anew, atol=1e-5)
    for place in range(4):
        rows = torch.tensor([place])
        pairs = asked.neighbors
        alone = StageBatch(
            asked.text.take(rows),
            Neighbors(pairs.pixels_BKCHW[rows], pairs.text.take(rows), pairs.mask_BK[rows]),
            asked.seeds_B[place : place + 1],
            asked.settings_B[place : place + 1],
            None if asked.low_res_BCHW is None else asked.low_res_BCHW[rows],
        )  # fmt: skip
        assert torch.allclose(sampler.sample(alone)[0], once[place], atol=1e-5), (
            "a picture does not depend on its batch"
        )


@torch.no_grad()
@pytest.mark.parametrize(("config", "low"), [(TINY_BASE, None), (TINY_SUPER, 8)])
def test_a_guided_step_is_as_if_each_pass_were_alone(config: StageConfig, low: int | None) -> None:
    network, asked = tiny_stage(config), batch(4, config.size, low)
    sampler = StageSampler(network, {})
    conditions = sampler._low_res(asked, torch.device("cpu"))

    def one_by_one(x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor, passes: Passes) -> torch.Tensor:
        said = []
        for number, place in enumerate(passes.place_P):
            row, own, at = rows[place][None], slice(number, number + 1), place[None]
            pairs = Neighbors(
                asked.neighbors.pixels_BKCHW[row],
                asked.neighbors.text.take(row),
                asked.neighbors.mask_BK[row] & passes.keep_neighbors_P[own],
            )
            words = asked.text.take(row).kept(passes.keep_text_P[own])
            seen = network(x[at], t[at], words, pairs, None if conditions is None else conditions.take(row))
            said.append(config.schedule.noise_of(x[at], seen, t[at], config.prediction))
        return torch.cat(said)

    guidance = MixedGuidance([own.guidance for own in asked.settings_B], asked.seeds_B, one_by_one)
    samplers = [own.sampler for own in asked.settings_B]
    shape = (3, config.size, config.size)
    drawn = sample(guidance.predict, config.schedule, samplers, asked.seeds_B, shape, torch.device("cpu"))
    wanted = (drawn / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(sampler.sample(asked), wanted, atol=1e-5)


def test_a_compiled_stage_draws_the_same() -> None:
    asked = batch(2, TINY_SUPER.size, 8)
    compiled = StageSampler(tiny_stage(TINY_SUPER), {})
    compiled.compile(backend="eager")
    assert torch.allclose(compiled.sample(asked), StageSampler(tiny_stage(TINY_SUPER), {}).sample(asked), atol=1e-5)


def test_a_cascade_passes_pictures_on_and_refuses_stages_that_do_not_fit() -> None:
    stages = [StageSampler(tiny_stage(TINY_BASE), {}), StageSampler(tiny_stage(TINY_SUPER), {})]
    sizes = [TINY_BASE.size, TINY_SUPER.size]

    def batch_of(number: int, low: torch.Tensor | None) -> StageBatch:
        return batch(2, sizes[number], low_res_BCHW=low)

    drawn = Cascade(stages).sample(batch_of)
    assert [x.shape[-1] for x in drawn] == sizes
    with pytest.raises(ConfigError, match="cannot follow"):
        Cascade(stages[::-1])
    with pytest.raises(ConfigError, match="starts from pictures of 8 pixels"):
        stages[1].sample(batch(2, 16))


def test_a_folder_brings_the_stage_back_and_diffusers_opens_its_unet(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    network = tiny_stage(TINY_SUPER)
    save_stage(tmp_path, network, {"note": 1})
    sampler = StageSampler.load(tmp_path)
    assert sampler.facts["note"] == 1 and sampler.config == TINY_SUPER
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), sampler.network.state_dict().values(), strict=True)
    )
    asked = batch(2, TINY_SUPER.size, 8)
    assert torch.allclose(sampler.sample(asked), StageSampler(network, {}).sample(asked), atol=1e-5)
    assert UNet2DConditionModel.from_pretrained(tmp_path / "unet").config["in_channels"] == 6
    (tmp_path / "neighbor_attention.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptionError, match="neighbor_attention"):
        StageSampler.load(tmp_path)


def example(count: int, edge: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pairs = neighbors(count, edge)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return {
        "pixels_BHWC": pixels(count, edge, edge, 3),
        "tokens_BLD": text(count).tokens, "text_mask_BL": text(count).mask,
        "neighbor_pixels_BKHWC": pixels(count, K, edge, edge, 3),
        "neighbor_tokens_BKLD": pairs.text.tokens, "neighbor_text_mask_BKL": pairs.text.mask,
        "neighbors_mask_BK": pairs.mask_BK,
    }  # fmt: skip


@pytest.mark.parametrize(("config", "crop"), [(TINY_BASE, None), (TINY_SUPER, None), (TINY_SUPER, 8)])
def test_the_loss_is_an_examples_own_and_falls(config: StageConfig, crop: int | None) -> None:
    objective = StageObjective(config, StageLossConfig(crop=crop), {})
    torch.manual_seed(0)
    model = objective.configure_model()
    seeds = np.arange(6) + 40
    prepared = objective.prepare(example(6, config.size), seeds)
    whole = objective.loss(model, prepared)
    part = {name: value[2:3] for name, value in example(6, config.size).items()}
    alone = objective.loss(model, objective.prepare(part, seeds[2:3]))
    assert torch.allclose(whole.per_example_B[2], alone.per_example_B[0], atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        objective.loss(model, prepared).per_example_B.mean().backward()
        optimizer.step()
    assert objective.loss(model, prepared).per_example_B.mean() < 0.8 * whole.per_example_B.mean()
    pictures = objective.sample(model, prepared, seeds)
    assert pictures.shape == (6, 3, crop or config.size, crop or config.size)


@given(st.floats(0, 0.6), st.floats(0, 0.6))
@settings(max_examples=10, deadline=None)
def test_text_and_neighbours_are_dropped_independently(drop_text: float, drop_neighbors: float) -> None:
    objective = StageObjective(TINY_BASE, StageLossConfig(drop_text=drop_text, drop_neighbors=drop_neighbors), {})
    count = 1500
    batch = {name: value[:1].expand(count, *value.shape[1:]) for name, value in example(1, 8).items()}
    drawn = objective.prepare({"pixels_BHWC": batch["pixels_BHWC"]}, np.arange(count))
    text_B, neighbors_B = (~drawn[name] for name in ("keep_text_B", "keep_neighbors_B"))
    for found, wanted in (
        (text_B.float().mean(), drop_text),
        (neighbors_B.float().mean(), drop_neighbors),
        ((text_B & neighbors_B).float().mean(), drop_text * drop_neighbors),
    ):
        assert abs(found - wanted) < 5 * (wanted * (1 - wanted) / count) ** 0.5 + 2e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "cannot be halved"),
        ({"neighbor_size": 9}, "neighbor_size 9"),
        ({"layers": (1, 2, 3)}, "layers names 3 levels"),
        ({"text_at": (5,)}, "levels have edges"),
        ({"low_size": 8}, "must be below"),
        ({"channels": 24}, "heads"),
    ],
)
def test_impossible_networks_say_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageConfig.model_validate({**TINY_BASE.model_dump(), **change})
