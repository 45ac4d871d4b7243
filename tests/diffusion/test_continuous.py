"""The continuous cosine schedule, its samplers on distributions that are known, and guidance by two conditions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remembrandt.diffusion.continuous import CosineSchedule, threshold
from remembrandt.diffusion.guidance import MixedGuidance, Passes, TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig, sample
from remembrandt.errors import ConfigError

SCHEDULE = CosineSchedule()
CPU = torch.device("cpu")


def test_signal_and_noise_keep_unit_variance_and_reach_both_ends() -> None:
    angle = SCHEDULE.angle(torch.linspace(0, 1, 101, dtype=torch.float64))
    log_snr = 2 * (angle.cos() / angle.sin()).log()
    assert torch.allclose(log_snr[[0, 50, 100]], torch.tensor([10.0, 0.0, -10.0], dtype=torch.float64), atol=1e-6)
    assert (log_snr[1:] < log_snr[:-1]).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_noise_comes_back_from_what_the_network_should_say(prediction: str) -> None:
    x, noise, t = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5)
    said = SCHEDULE.target(x, noise, t, prediction)  # type: ignore[arg-type]
    found = SCHEDULE.noise_of(SCHEDULE.add_noise(x, noise, t), said, t, prediction)  # type: ignore[arg-type]
    assert torch.allclose(found, noise, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (SamplerConfig(solver="ddim", eta=0.0, num_inference_steps=100), 0.02),
        (SamplerConfig(solver="ddim", eta=1.0, num_inference_steps=200), 0.02),
        (SamplerConfig(solver="dpm_solver++", num_inference_steps=20), 0.02),
    ],
)
def test_samples_of_an_exact_network_have_the_datas_mean_and_spread(settings: SamplerConfig, tolerance: float) -> None:
    mean, deviation = 0.2, 0.15

    def predict(x: torch.Tensor, t_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        angle = SCHEDULE.angle(t_B.double()).view(-1, 1, 1, 1)
        variance = (angle.cos() * deviation) ** 2 + angle.sin() ** 2
        return (angle.sin() * (x - angle.cos() * mean) / variance).float()

    drawn = sample(predict, SCHEDULE, [settings] * 40, list(range(40)), (1, 16, 16), CPU)
    assert drawn.mean().item() == pytest.approx(mean, abs=tolerance)
    assert drawn.std().item() == pytest.approx(deviation, abs=tolerance)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    many = [
        SamplerConfig(num_inference_steps=4),
        SamplerConfig(solver="dpm_solver++", num_inference_steps=7, dynamic_threshold=0.9),
        SamplerConfig(num_inference_steps=4, eta=0.0),
    ]

    def predict(x: torch.Tensor, t_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x * t_B.float().view(-1, 1, 1, 1) + 0.1

    together = sample(predict, SCHEDULE, many, [5, 6, 7], (3, 4, 4), CPU)
    for place, settings in enumerate(many):
        alone = sample(predict, SCHEDULE, [settings], [5 + place], (3, 4, 4), CPU)
        assert torch.allclose(together[place], alone[0], atol=1e-6)


def test_thresholding_keeps_small_pictures_and_rescales_large_ones() -> None:
    small = torch.linspace(-0.8, 0.8, 100).view(1, 1, 10, 10)
    assert torch.equal(threshold(small, 0.95), small)
    large = small * 5
    assert threshold(large, None).abs().max() == 1
    scaled = threshold(large, 0.95)
    assert scaled.abs().max() == pytest.approx(1) and (scaled.abs() >= 1 - 1e-6).float().mean() < 0.07
    assert torch.equal(threshold(torch.cat([small, large]), 0.95)[:1], small), "each picture by itself"


def test_impossible_settings_say_why() -> None:
    with pytest.raises(ConfigError, match="use ddim or dpm_solver"):
        sample(lambda x, t, r: x, SCHEDULE, [SamplerConfig(solver="unipc")], [0], (1, 2, 2), CPU)
    with pytest.raises(ConfigError, match="at least 1"):
        sample(lambda x, t, r: x, SCHEDULE, [SamplerConfig(num_inference_steps=0)], [0], (1, 2, 2), CPU)


guidances = st.builds(
    TextNeighborGuidance,
    kind=st.sampled_from(["interleaved", "weighted", "joint", "plain"]),
    text_weight=st.floats(0, 30),
    neighbor_weight=st.floats(0, 30),
    interleave_ratio=st.floats(0, 1),
)


@given(guidances, st.floats(0, 1, exclude_max=True))
def test_the_passes_of_a_step_add_up_to_one(guidance: TextNeighborGuidance, drawn: float) -> None:
    assert sum(guidance.coefficients(drawn).values()) == pytest.approx(1)
    # A network that ignores its conditions is not changed by guidance.


def test_guidance_is_equation_6() -> None:
    scores = {(True, True): 3.0, (True, False): 5.0, (False, True): 7.0, (False, False): 11.0}

    def network(x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor, passes: Passes) -> torch.Tensor:
        kept = zip(passes.keep_text_P.tolist(), passes.keep_neighbors_P.tolist(), strict=True)
        return torch.tensor([scores[pair] for pair in kept]).view(-1, 1, 1, 1)

    w_p, w_n, eta = 3.0, 1.5, 0.3
    settings = [
        TextNeighborGuidance(kind=kind, text_weight=w_p, neighbor_weight=w_n, interleave_ratio=eta)  # type: ignore[arg-type]
        for kind in ("plain", "joint", "weighted", "interleaved")
    ]
    by_text, by_neighbors = w_p * 3 - (w_p - 1) * 7, w_n * 3 - (w_n - 1) * 5
    guided = MixedGuidance(settings, [1, 2, 3, 4], network)
    x, rows = torch.zeros(4, 1, 1, 1), torch.arange(4)
    steps = np.array([guided.predict(x, torch.ones(4), rows).flatten().tolist() for _ in range(400)])
    assert (steps[:, 0] == 3).all() and np.allclose(steps[:, 1], w_p * 3 - (w_p - 1) * 11)
    assert np.allclose(steps[:, 2], eta * by_text + (1 - eta) * by_neighbors)
    assert set(np.round(steps[:, 3], 4)) == {by_text, by_neighbors}
    share = (np.round(steps[:, 3], 4) == by_text).mean()
    assert abs(share - eta) < 4 * math.sqrt(eta * (1 - eta) / 400)
    again = MixedGuidance(settings[3:], [4], network)
    alone = [again.predict(x[3:], torch.ones(1), torch.tensor([0])).item() for _ in range(400)]
    assert np.allclose(alone, steps[:, 3]), "R is drawn by the picture's own seed"
