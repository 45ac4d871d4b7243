import pytest
import torch
from diffusers import DDIMScheduler

from remembrandt.diffusion.schedule import Kind, ScheduleConfig


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_our_alphas_are_those_of_diffusers(kind: Kind) -> None:
    schedule = ScheduleConfig(kind=kind).build()
    theirs = DDIMScheduler(**schedule.diffusers_config()).alphas_cumprod
    assert torch.allclose(schedule.alphas_cumprod, theirs, atol=1e-7)


def test_velocity_is_that_of_diffusers_and_gives_the_noise_back() -> None:
    schedule = ScheduleConfig().build()
    x, noise, t = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4), torch.tensor([1, 250, 800, 999])
    velocity = schedule.target(x, noise, t, "v")
    theirs = DDIMScheduler(**schedule.diffusers_config())
    assert torch.allclose(velocity, theirs.get_velocity(x, noise, t), atol=1e-5)
    noisy = schedule.add_noise(x, noise, t)
    assert torch.allclose(schedule.noise_of(noisy, velocity, t, "v"), noise, atol=1e-5)
    assert schedule.target(x, noise, t, "epsilon") is noise
    assert schedule.noise_of(noisy, noise, t, "epsilon") is noise


def test_noise_is_added_in_proportion() -> None:
    schedule = ScheduleConfig().build()
    x, noise = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    noisy = schedule.add_noise(x, noise, torch.tensor([0, 999]))
    kept = schedule.alphas_cumprod[[0, 999]]
    assert torch.allclose(noisy[:, 0, 0, 0], kept.sqrt() + 2 * (1 - kept).sqrt())
    assert kept[0] > 0.99 and kept[1] < 0.01
