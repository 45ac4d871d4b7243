"""What a stage of Re-Imagen is trained to do (P2 §3.2).

Letters in names: B examples, K neighbours, C H W, L text tokens, D their size.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from remembrandt.configuration import Config
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.diffusion.noise import (
    TRAIN_CROP,
    TRAIN_DROP_NEIGHBORS,
    TRAIN_DROP_TEXT,
    TRAIN_LOW_RES_LEVEL,
    TRAIN_LOW_RES_NOISE,
    TRAIN_NOISE,
    TRAIN_TIMESTEP,
    seeded_normal,
    seeded_uniform,
)
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.models.objective import Losses, Tensors
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import LowRes, Neighbors, ReImagenUNet, Text, shrink
from remembrandt.models.reimagen.sampling import StageBatch, StageSampler, StageSettings, save_stage

QUARTILES = ("t0", "t1", "t2", "t3")
_LOG_SETTINGS = StageSettings(
    TextNeighborGuidance(kind="joint", text_weight=2.0),
    SamplerConfig(solver="dpm_solver++", num_inference_steps=20, dynamic_threshold=0.995),
)


class StageLossConfig(Config):
    """What is drawn for an example.

    Attributes:
        drop_text, drop_neighbors: share of the examples whose text, or neighbours, are left out, independently.
        crop: edge of the square that a super-resolution stage is trained on, cut at random; None: the whole picture.
        largest_low_res_noise: c_x gets noise of a level drawn between 0 and this.
    """

    drop_text: float = Field(0.1, ge=0, le=1)
    drop_neighbors: float = Field(0.1, ge=0, le=1)
    crop: int | None = Field(None, ge=1)
    largest_low_res_noise: float = Field(1.0, ge=0, le=1)


class StageObjective:
    """E‖ε - ε_θ(x_t, c_p, c_n, c_x, t)‖² with t uniform in [0, 1], or the same of v.

    Batches have `pixels_BHWC` (uint8), `tokens_BLD` and `text_mask_BL`, and of the neighbours `neighbor_pixels_BKHWC`,
    `neighbor_tokens_BKLD`, `neighbor_text_mask_BKL` and `neighbors_mask_BK`.

    Args:
        facts: written into the finished stage's folder: text encoder, database, what it was trained on.
    """

    group_names = QUARTILES

    def __init__(self, config: StageConfig, loss: StageLossConfig, facts: dict[str, object]) -> None:
        self.config, self.loss_config, self.facts = config, loss, facts
        if loss.crop is not None:
            _check_crop(config, loss.crop)

    def configure_model(self) -> nn.Module:
        """A fresh network."""
        return ReImagenUNet(self.config)

    def prepare(self, batch: Tensors, seeds_B: NDArray[np.int64]) -> Tensors:
        """Draws t, noise, what is dropped, the crop, and the noise of c_x."""
        loss, config = self.loss_config, self.config
        pixels_BCHW = batch["pixels_BHWC"].permute(0, 3, 1, 2)
        if loss.crop is not None:
            pixels_BCHW = self._cut(pixels_BCHW, loss.crop, seeds_B)
        drawn: dict[str, torch.Tensor] = {
            "pixels_BCHW": pixels_BCHW.contiguous(),
            "t_B": seeded_uniform(seeds_B, TRAIN_TIMESTEP).float(),
            "noise_BCHW": seeded_normal(seeds_B, pixels_BCHW.shape[1:], TRAIN_NOISE),
            "keep_text_B": seeded_uniform(seeds_B, TRAIN_DROP_TEXT) >= loss.drop_text,
            "keep_neighbors_B": seeded_uniform(seeds_B, TRAIN_DROP_NEIGHBORS) >= loss.drop_neighbors,
        }
        if config.low_size is not None:
            edge = config.low_size * pixels_BCHW.shape[-1] // config.size
            level_B = seeded_uniform(seeds_B, TRAIN_LOW_RES_LEVEL).float() * loss.largest_low_res_noise
            drawn |= {
                "low_res_level_B": level_B,
                "low_res_noise_BCHW": seeded_normal(seeds_B, (3, edge, edge), TRAIN_LOW_RES_NOISE),
            }
        return {name: value for name, value in batch.items() if name != "pixels_BHWC"} | drawn

    def loss(self, model: nn.Module, batch: Tensors) -> Losses:
        """Mean squared error over a picture, by quartile of t."""
        x_BCHW, noise_BCHW, t_B = _signed(batch["pixels_BCHW"]), batch["noise_BCHW"], batch["t_B"]
        schedule = self.config.schedule
        text, neighbors = self._conditions(batch)
        low_res = None
        if self.config.low_size is not None:
            level_B, noise = batch["low_res_level_B"], batch["low_res_noise_BCHW"]
            low_res = LowRes(schedule.add_noise(shrink(x_BCHW, noise.shape[-1]), noise, level_B), level_B)
        said_BCHW = model(schedule.add_noise(x_BCHW, noise_BCHW, t_B), t_B, text, neighbors, low_res)
        target_BCHW = schedule.target(x_BCHW, noise_BCHW, t_B, self.config.prediction)
        errors_B = (said_BCHW.float() - target_BCHW).square().flatten(1).mean(dim=1)
        return Losses(errors_B, groups_B=(t_B * len(QUARTILES)).long().clamp(max=len(QUARTILES) - 1))

    def sample(self, model: nn.Module, batch: Tensors, seeds_B: NDArray[np.int64]) -> torch.Tensor:
        """Pictures from the batch's texts and neighbours; c_x is made from the examples themselves."""
        x_BCHW = _signed(batch["pixels_BCHW"])
        count = len(x_BCHW)
        kept = {**batch, **{name: torch.ones(count, dtype=torch.bool) for name in ("keep_text_B", "keep_neighbors_B")}}
        text, neighbors = self._conditions({name: value.to(x_BCHW.device) for name, value in kept.items()})
        low_res = None
        if self.config.low_size is not None:
            low_res = shrink(x_BCHW, self.config.low_size * x_BCHW.shape[-1] // self.config.size) / 2 + 0.5
        seeds = tuple(int(seed) for seed in seeds_B[:count])
        network: Any = model
        return StageSampler(network, {}).sample(StageBatch(text, neighbors, seeds, (_LOG_SETTINGS,) * count, low_res))

    def load(self, model: nn.Module, folder: Path) -> None:
        """The weights of a folder that `save` wrote."""
        try:
            model.load_state_dict(StageSampler.load(folder).network.float().state_dict())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{folder} holds a stage of another shape than is configured: {reason}") from None

    def save(self, model: nn.Module, folder: Path) -> None:
        """`save_stage`: U-Net, attention to neighbours, and the facts."""
        assert isinstance(model, ReImagenUNet)
        save_stage(folder, model, json.loads(json.dumps(self.facts)))

    def _conditions(self, batch: Tensors) -> tuple[Text, Neighbors]:
        text = Text(batch["tokens_BLD"], batch["text_mask_BL"]).kept(batch["keep_text_B"])
        own = Text(batch["neighbor_tokens_BKLD"], batch["neighbor_text_mask_BKL"])
        pixels_BKCHW = _signed(batch["neighbor_pixels_BKHWC"].movedim(-1, 2))
        mask_BK = batch["neighbors_mask_BK"] & batch["keep_neighbors_B"][:, None]
        return text, Neighbors(pixels_BKCHW, own, mask_BK)

    def _cut(self, pixels_BCHW: torch.Tensor, edge: int, seeds_B: NDArray[np.int64]) -> torch.Tensor:
        """Squares that begin at a pixel of c_x."""
        stride = self.config.size // (self.config.low_size or self.config.size)
        room = (self.config.size - edge) // stride + 1
        places_B = (seeded_uniform(seeds_B, TRAIN_CROP) * room * room).long().tolist()
        corners = [(place // room * stride, place % room * stride) for place in places_B]
        return torch.stack([x[:, y : y + edge, z : z + edge] for x, (y, z) in zip(pixels_BCHW, corners, strict=True)])


def _check_crop(config: StageConfig, crop: int) -> None:
    if config.low_size is None:
        raise ConfigError("loss.crop is for super-resolution stages: the first stage sees whole pictures")
    multiple = np.lcm(config.size // config.low_size, 2 ** (len(config.multipliers) - 1))
    if crop > config.size or crop % multiple:
        raise ConfigError(f"loss.crop {crop} is not possible: take a multiple of {multiple} up to {config.size}")


def _signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 → [-1, 1]."""
    return pixels.float() / 127.5 - 1
