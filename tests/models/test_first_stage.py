from pathlib import Path

import numpy as np
import pytest
import torch

from remembrandt.errors import CorruptionError
from remembrandt.models.first_stage.config import FirstStageConfig, FirstStageLossConfig
from remembrandt.models.first_stage.critic import PatchCritic, hinge
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, psnr
from remembrandt.models.first_stage.objective import FirstStageObjective, measure_scale
from remembrandt.models.first_stage.perceptual import Perceptual
from tests.support.models import TINY_FIRST_STAGE, tiny_first_stage

VQ = TINY_FIRST_STAGE.model_copy(update={"kind": "vq", "num_codes": 32})


def pictures(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "edge", "channels"), [("vq", 64, 3), ("kl", 16, 16)])
def test_latents_have_the_papers_shape(name: str, edge: int, channels: int) -> None:
    levels = (128, 256, 512) if name == "vq" else (128, 128, 256, 256, 512)
    config = FirstStageConfig(kind=name, size=256, channels=levels, latent_channels=channels)
    assert 256 // config.factor == edge
    with torch.device("meta"):
        network = build_autoencoder(config)
        encoded = network.encode(torch.zeros(1, 3, 256, 256))
    latents = encoded.latents if name == "vq" else encoded.latent_dist.mean
    assert latents.shape == (1, channels, edge, edge)


@pytest.mark.parametrize("config", [TINY_FIRST_STAGE, VQ], ids=["kl", "vq"])
def test_the_scale_makes_latents_of_unit_variance_and_survives_saving(config: FirstStageConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 255
    stage = FirstStage(measure_scale(build_autoencoder(config), pixels))
    latents = stage.encode(pixels)
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)
    stage.save(tmp_path)
    again = FirstStage.load(tmp_path)
    assert torch.allclose(again.encode(pixels), latents, atol=1e-6)
    assert again.decode(latents).shape == pixels.shape
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(CorruptionError):
        FirstStage.load(tmp_path)


def test_a_batch_of_any_size_passes_in_parts_as_each_picture_alone_would() -> None:
    torch.manual_seed(0)
    stage = FirstStage(build_autoencoder(TINY_FIRST_STAGE))
    passes: list[int] = []
    stage.network.decoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    pixels = torch.from_numpy(pictures(300)).permute(0, 3, 1, 2).float() / 255
    latents = stage.encode(pixels)
    assert torch.allclose(latents, torch.cat([stage.encode(one) for one in pixels.split(1)]), atol=1e-5)
    together = stage.decode(latents)
    assert len(passes) > 1 and max(passes) < 300
    assert torch.allclose(together, torch.cat([stage.decode(one) for one in latents.split(1)]), atol=1e-5)
    assert stage.decode(latents[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("config", [TINY_FIRST_STAGE, VQ], ids=["kl", "vq"])
def test_training_reconstructs(config: FirstStageConfig) -> None:
    objective = FirstStageObjective(config, FirstStageLossConfig(perceptual=0.0))
    torch.manual_seed(0)
    model = objective.configure_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = objective.prepare({"pixels_BHWC": torch.from_numpy(pictures())}, np.arange(4))
    losses = []
    for _ in range(25):
        loss = objective.loss(model, batch).per_example_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_the_critic_learns_to_tell_and_the_model_feels_it() -> None:
    objective = FirstStageObjective(
        TINY_FIRST_STAGE, FirstStageLossConfig(perceptual=0.0, adversarial=0.5, adversarial_from=1)
    )
    torch.manual_seed(0)
    model, critic = objective.configure_model(), objective.configure_critic()
    assert critic is not None
    pixels = torch.from_numpy(np.repeat(np.repeat(pictures(), 2, 1), 2, 2))
    batch = objective.prepare({"pixels_BHWC": pixels}, np.arange(4))
    assert [objective.critic_learns(step) for step in range(3)] == [False, True, True]
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss = objective.critic_loss(model, critic, batch).per_example_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert "adversarial" not in objective.adversarial_loss(model, critic, batch, 0).logs
    assert "adversarial" in objective.adversarial_loss(model, critic, batch, 1).logs
    critic.zero_grad()
    objective.adversarial_loss(model, critic, batch, 1).per_example_B.mean().backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    # As DeepSpeed makes them for loop.precision = bf16.
    model, critic = model.bfloat16(), critic.bfloat16()
    assert objective.critic_loss(model, critic, batch).per_example_B.isfinite().all()
    assert objective.adversarial_loss(model, critic, batch, 1).per_example_B.isfinite().all()


def test_hinge_loss_is_zero_beyond_the_margin() -> None:
    assert float(hinge(torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -2.0))) == 0.0
    assert PatchCritic()(torch.zeros(1, 3, 32, 32)).shape[1] == 1


def test_perceptual_distance_sees_more_in_a_blur_than_in_a_little_light() -> None:
    distance = Perceptual("st-lpips")
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(pixels, 5, stride=1, padding=2)
    assert torch.allclose(distance(pixels, pixels), torch.zeros(2), atol=1e-6)
    assert bool((distance(pixels, blurred) > 3 * distance(pixels, (pixels + 0.02).clamp(0, 1))).all())


def test_psnr_of_a_known_error() -> None:
    a = torch.zeros(1, 3, 8, 8)
    assert float(psnr(a, a + 0.1)) == pytest.approx(20.0, abs=1e-3)


def test_tiny_stage_is_what_other_tests_take() -> None:
    assert tiny_first_stage().latent_channels == TINY_FIRST_STAGE.latent_channels
