import re

import pytest
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError

from remembrandt.diffusion.guidance import ClassifierFree, Context
from remembrandt.diffusion.noise import STEPS, seeded_normal
from remembrandt.diffusion.samplers import SamplerConfig, SolverName, make_solver, sample
from remembrandt.diffusion.schedule import ScheduleConfig
from remembrandt.errors import ConfigError

SCHEDULE = ScheduleConfig().build()
SHAPE = (2, 4, 4)
CPU = torch.device("cpu")
MOST_STEPS: dict[SolverName, int] = {"ddim": 1000, "dpm_solver++": 999, "unipc": 999}


def predict(x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a network: it depends on state, time and the picture's own row."""
    scale_B = 0.5 + timesteps_B / 2000 + rows / 100
    return torch.tanh(x_BCHW) * scale_B[:, None, None, None]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [7, 100, 500])
def test_ddim_follows_diffusers_step_by_step(steps: int, eta: float) -> None:
    theirs = DDIMScheduler(**SCHEDULE.diffusers_config(), set_alpha_to_one=False, clip_sample=False)
    theirs.set_timesteps(steps)
    ours = make_solver(SamplerConfig(num_inference_steps=steps, eta=eta), SCHEDULE, [3, 4])
    assert ours.timesteps == [int(t) for t in theirs.timesteps]
    x = seeded_normal([3, 4], SHAPE)
    for index, t in enumerate(ours.timesteps):
        noise = torch.tanh(x) * (0.5 + t / 2000)
        fresh = seeded_normal([3, 4], SHAPE, STEPS + index)
        expected = theirs.step(noise, t, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
        x, _ = ours.step(index, x, noise)
        assert torch.allclose(x, expected, atol=2e-5, rtol=1e-5), f"step {index}"


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "unipc"])
def test_a_picture_does_not_depend_on_its_batch(solver: SolverName) -> None:
    mixed = [
        SamplerConfig(solver="ddim", num_inference_steps=9),
        SamplerConfig(solver=solver, num_inference_steps=12),
        SamplerConfig(solver="unipc", num_inference_steps=5),
    ]

    def rowless(x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return predict(x, t, torch.zeros_like(rows))

    together = sample(rowless, SCHEDULE, mixed, [1, 2, 3], SHAPE, CPU)
    alone = sample(rowless, SCHEDULE, mixed[1:2], [2], SHAPE, CPU)
    assert torch.allclose(together[1], alone[0], atol=1e-6)


def test_a_perfect_network_gives_back_the_picture() -> None:
    clean = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))

    def perfect(x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        kept = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * clean[rows]) / (1 - kept).sqrt()

    settings = [SamplerConfig(solver=s, num_inference_steps=20) for s in ("ddim", "dpm_solver++", "unipc")]
    assert torch.allclose(sample(perfect, SCHEDULE, settings, [1, 2, 3], SHAPE, CPU), clean, atol=0.15)


def test_progress_comes_with_a_forecast() -> None:
    told: list[tuple[int, int]] = []
    sample(
        predict, SCHEDULE, [SamplerConfig(num_inference_steps=4)], [1], SHAPE, CPU,
        on_step=lambda done, total, clean: told.append((done, total)) or None,
    )  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("solver", MOST_STEPS)
def test_any_number_of_steps_begins_where_the_noise_does(solver: SolverName) -> None:
    most = MOST_STEPS[solver]
    for steps in (1, 9, *range(10, 101, 7), *range(101, 1000, 37), 500, 999, most):
        found = make_solver(SamplerConfig(solver=solver, num_inference_steps=steps), SCHEDULE, [0]).timesteps
        assert len(found) == steps and sorted(found, reverse=True) == list(found), steps
        assert found[-1] >= 0 and found[0] < 1000 and (steps < 10 or found[0] >= 900), (steps, found[0])
    many = SamplerConfig(solver=solver, num_inference_steps=most)
    assert torch.isfinite(sample(predict, SCHEDULE, [many], [1], SHAPE, CPU)).all()


@pytest.mark.parametrize("solver", MOST_STEPS)
def test_more_steps_than_timesteps_are_refused(solver: SolverName) -> None:
    most = MOST_STEPS[solver]
    with pytest.raises(ConfigError, match=rf"ask {re.escape(solver)} for 1 to {most}$"):
        make_solver(SamplerConfig(solver=solver, num_inference_steps=most + 1), SCHEDULE, [0])


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_lies_between_deterministic_and_ddpm(eta: float) -> None:
    with pytest.raises(ValidationError, match="eta"):
        SamplerConfig(eta=eta)


def test_guidance_moves_away_from_the_unconditional_prediction() -> None:
    passes: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor, place: torch.Tensor, context: Context) -> torch.Tensor:
        passes.append(len(place))
        return x[place] + context.tokens_BLD.sum(dim=(1, 2))[:, None, None, None]

    context = Context(torch.ones(3, 2, 4))
    guidance = ClassifierFree(context, torch.tensor([1.0, 2.0, 0.0]))
    x, rows = torch.zeros(3, *SHAPE), torch.arange(3)
    guided = guidance.predict(network, x, torch.zeros(3).long(), rows)
    # ε(c) = 8 and ε(∅) = 0: s · 8.
    assert guided[:, 0, 0, 0].tolist() == [8.0, 16.0, 0.0]
    assert passes == [5], "a picture of scale 1 needs no second pass"
