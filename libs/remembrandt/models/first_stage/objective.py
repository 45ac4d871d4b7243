"""What the first stage is trained to do: reconstruct, pixel by pixel and as people see it (P1 App. E.1).

Letters in names: B pictures, C H W.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch import nn

from remembrandt.diffusion.noise import TRAIN_NOISE, seeded_normal, seeded_uniform
from remembrandt.models.first_stage.config import FirstStageConfig, FirstStageLossConfig
from remembrandt.models.first_stage.critic import PatchCritic, balance, frozen, hinge
from remembrandt.models.first_stage.model import Autoencoder, FirstStage, build_autoencoder, psnr, with_scale
from remembrandt.models.first_stage.perceptual import Perceptual
from remembrandt.models.folders import take_weights
from remembrandt.models.objective import Losses, Tensors

_FLIP = 1_000_100


class FirstStageObjective:
    """Trains an autoencoder. Batches have `pixels_BHWC` (uint8).

    Attributes:
        group_names: none.
    """

    group_names: tuple[str, ...] = ()

    def __init__(self, config: FirstStageConfig, loss: FirstStageLossConfig) -> None:
        self.config, self.loss_config = config, loss
        self._perceptual = Perceptual(loss.perceptual_network) if loss.perceptual else None

    def configure_model(self) -> nn.Module:
        """A fresh autoencoder."""
        return build_autoencoder(self.config)

    def configure_critic(self) -> nn.Module | None:
        """A fresh patch discriminator, where the loss has one."""
        return PatchCritic() if self.loss_config.adversarial else None

    def prepare(self, batch: Tensors, seeds_B: NDArray[np.int64]) -> Tensors:
        """uint8 → `pixels_BCHW` float32 in [0, 1], mirrored by a coin's toss; `noise_BCHW` for a KL latent."""
        pixels_BCHW = batch["pixels_BHWC"].permute(0, 3, 1, 2).float() / 255
        mirrored_B = seeded_uniform(seeds_B, _FLIP) < 0.5
        pixels_BCHW = torch.where(mirrored_B[:, None, None, None], pixels_BCHW.flip(-1), pixels_BCHW)
        edges = [edge // self.config.factor for edge in pixels_BCHW.shape[-2:]]
        noise_BCHW = seeded_normal(seeds_B, (self.config.latent_channels, *edges), TRAIN_NOISE)
        return {"pixels_BCHW": pixels_BCHW, "noise_BCHW": noise_BCHW}

    def loss(self, model: nn.Module, batch: Tensors) -> Losses:
        """Reconstruction, perceptual distance, and the latent's own term."""
        rebuilt_BCHW, latent_B = self._rebuild(model, batch)
        return self._reconstruction(batch["pixels_BCHW"], rebuilt_BCHW, latent_B)

    def critic_learns(self, step: int) -> bool:
        """From `adversarial_from` on."""
        return step >= self.loss_config.adversarial_from

    def adversarial_loss(self, model: nn.Module, critic: nn.Module, batch: Tensors, step: int) -> Losses:
        """As `loss`; from `adversarial_from` on, the critic should also take the result for a picture."""
        if not self.critic_learns(step):
            return self.loss(model, batch)
        rebuilt_BCHW, latent_B = self._rebuild(model, batch)
        losses = self._reconstruction(batch["pixels_BCHW"], rebuilt_BCHW, latent_B)
        judge = _unwrapped(critic)  # DeepSpeed would take this pass for one that the critic learns from
        with frozen(judge):
            doubt_B = -judge(rebuilt_BCHW * 2 - 1).float().flatten(1).mean(dim=1)
        last = _last_layer(model)
        weight = self.loss_config.adversarial * balance(losses.per_example_B.mean(), doubt_B.mean(), last)
        return Losses(losses.per_example_B + weight * doubt_B, logs={**losses.logs, "adversarial": doubt_B.detach()})

    def critic_loss(self, model: nn.Module, critic: nn.Module, batch: Tensors) -> Losses:
        """Hinge loss."""
        with torch.no_grad():
            rebuilt_BCHW, _ = self._rebuild(model, batch)
        return Losses(hinge(critic(batch["pixels_BCHW"] * 2 - 1), critic(rebuilt_BCHW.detach() * 2 - 1)))

    def sample(self, model: nn.Module, batch: Tensors, seeds_B: NDArray[np.int64]) -> torch.Tensor:
        """Reconstructions, as the finished first stage makes them."""
        pixels_BCHW = batch["pixels_BCHW"][: len(seeds_B)]
        stage = FirstStage.__new__(FirstStage)
        stage.network = model
        return stage.decode(stage.encode(pixels_BCHW)).clamp(0, 1).cpu()

    def load(self, model: nn.Module, folder: Path) -> None:
        """The autoencoder of a folder that `save` wrote."""
        take_weights(model, folder)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The autoencoder's folder, as diffusers reads it; `measure_scale` has set the latent scale."""
        FirstStage(model).save(folder)

    def _rebuild(self, model: nn.Module, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction in [0, 1], and the latent's own loss (B,)."""
        network: Any = _unwrapped(model)
        x_BCHW = (batch["pixels_BCHW"] * 2 - 1).to(network.dtype)
        if isinstance(network, VQModel):
            latents_BCHW = network.encode(x_BCHW).latents
            quantised_BCHW, codebook, _ = network.quantize(latents_BCHW)
            hidden_BCHW = network.post_quant_conv(quantised_BCHW)
            rebuilt_BCHW = network.decoder(hidden_BCHW)
            own_B = self.loss_config.codebook * codebook.float().expand(len(x_BCHW))
        else:
            posterior = network.encode(x_BCHW).latent_dist
            latents_BCHW = posterior.mean + posterior.std * batch["noise_BCHW"].to(posterior.mean.dtype)
            rebuilt_BCHW = network.decode(latents_BCHW).sample
            own_B = self.loss_config.kl * posterior.kl().float() / x_BCHW[0].numel()
        return rebuilt_BCHW.float() / 2 + 0.5, own_B

    def _reconstruction(self, pixels_BCHW: torch.Tensor, rebuilt_BCHW: torch.Tensor, latent_B: torch.Tensor) -> Losses:
        config = self.loss_config
        pixel_B = (rebuilt_BCHW - pixels_BCHW).abs().flatten(1).mean(dim=1)
        total_B = config.pixel * pixel_B + latent_B
        logs = {"psnr": psnr(rebuilt_BCHW.detach().clamp(0, 1), pixels_BCHW), "latent": latent_B.detach()}
        if self._perceptual is not None:
            self._perceptual.to(pixels_BCHW.device)
            distance_B = self._perceptual(rebuilt_BCHW, pixels_BCHW)
            total_B = total_B + config.perceptual * distance_B
            logs["perceptual"] = distance_B.detach()
        return Losses(total_B, logs=logs)


@torch.no_grad()
def measure_scale(network: Autoencoder, pixels_BCHW: torch.Tensor) -> Autoencoder:
    """Sets the latent scale to 1 / standard deviation over pictures in [0, 1]."""
    stage = FirstStage(with_scale(network, 1.0))
    return with_scale(network, 1.0 / float(stage.encode(pixels_BCHW).std()))


def _unwrapped(model: nn.Module) -> nn.Module:
    """DeepSpeed's engine and torch.compile wrap a network whose parts are called here one by one."""
    inner = getattr(model, "module", model)
    return cast(nn.Module, getattr(inner, "_orig_mod", inner))


def _last_layer(model: nn.Module) -> torch.Tensor:
    network: Any = _unwrapped(model)
    return cast(torch.Tensor, network.decoder.conv_out.weight)
