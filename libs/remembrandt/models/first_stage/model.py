"""The first stage: diffusers' autoencoders with a measured latent scale.

Letters in names: B pictures, C H W.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn

from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.folders import CONFIG, find_model, load_network, moved, read_json, save_network

Autoencoder = nn.Module
"""An `AutoencoderKL` or a `VQModel`."""

_PIXELS_AT_ONCE = 64 * 256 * 256
_PIXELS_AT_ONCE_ON_CPU = 8 * 64 * 64
"""Whose activations its caches hold: 64 pictures of 64 pixels take .6 of the time that they take in one part."""


def build_autoencoder(config: FirstStageConfig) -> Autoencoder:
    """Fresh weights from torch's default generator."""
    levels = len(config.channels)
    groups = math.gcd(32, *config.channels)
    common: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "latent_channels": config.latent_channels,
        "norm_num_groups": groups,
        "sample_size": config.size,
        "mid_block_add_attention": config.middle_attention,
    }
    if config.kind == "kl":
        return cast(Autoencoder, AutoencoderKL(**common))
    codes = {"num_vq_embeddings": config.num_codes, "vq_embed_dim": config.latent_channels}
    return cast(Autoencoder, VQModel(**common, **codes))


class FirstStage:
    """A frozen autoencoder: pictures in [0, 1] ↔ latents of about unit variance.

    A VQ latent is taken before quantisation, as the latent diffusion code base does; decoding quantises it.

    Attributes:
        network: the autoencoder; its config's `scaling_factor` is the latent scale.
    """

    def __init__(self, network: Autoencoder) -> None:
        self.network: Any = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Opens a folder of an AutoencoderKL or VQModel: ours, any that diffusers wrote, or a shipped one by name.

        Raises:
            ConfigError: no network there.
            CorruptionError: a damaged file.
        """
        return cls(load_network(find_model(folder)).float())

    @staticmethod
    def factor_of(folder: str | Path) -> int:
        """`factor` of a folder, without loading its network."""
        return int(2 ** (len(read_json(find_model(folder) / CONFIG)["block_out_channels"]) - 1))

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and diffusers open."""
        save_network(self.network, Path(folder))

    @property
    def scale(self) -> float:
        """What latents are multiplied by, so that their standard deviation is about 1."""
        return float(self.network.config["scaling_factor"])

    @property
    def factor(self) -> int:
        """By how much a latent's edge is smaller than the picture's."""
        return int(2 ** (len(self.network.config["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config["latent_channels"])

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Self:
        """Moves the network."""
        moved(self.network, device, dtype)
        return self

    @torch.no_grad()
    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] → latents × scale; of a KL latent, the mode."""
        return torch.cat([self._encode(part) for part in self._parts(pixels_BCHW, 1)])

    @torch.no_grad()
    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents × scale → pictures, about [0, 1], float32."""
        return torch.cat([self._decode(part) for part in self._parts(latents_BCHW, self.factor)])

    def _encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self._own(pixels_BCHW) * 2 - 1
        if isinstance(self.network, VQModel):
            latents_BCHW = self.network.encode(x_BCHW).latents
        else:
            latents_BCHW = self.network.encode(x_BCHW).latent_dist.mode()
        return latents_BCHW.float() * self.scale

    def _decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return self.network.decode(self._own(latents_BCHW) / self.scale).sample.float() / 2 + 0.5

    def _parts(self, x_BCHW: torch.Tensor, factor: int) -> Sequence[torch.Tensor]:
        """Of a batch of any size, what one pass may take; `factor` by which the pictures' edges are larger."""
        pixels = x_BCHW.shape[-1] * x_BCHW.shape[-2] * factor**2
        on_cpu = next(self.network.parameters()).device.type == "cpu"
        return x_BCHW.split(max(1, (_PIXELS_AT_ONCE_ON_CPU if on_cpu else _PIXELS_AT_ONCE) // pixels))

    def _own(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        parameter = next(self.network.parameters())
        return x_BCHW.to(parameter.device, parameter.dtype)


def with_scale(network: Autoencoder, scale: float) -> Autoencoder:
    """The same network, its config saying another latent scale."""
    cast(Any, network).register_to_config(scaling_factor=scale)
    return network


def psnr(a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pictures in [0, 1]."""
    error_B = (a_BCHW.float() - b_BCHW.float()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error_B.clamp(min=1e-12))


def parameters_of(module: nn.Module) -> int:
    """Trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
