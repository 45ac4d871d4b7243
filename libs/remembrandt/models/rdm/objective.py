"""What RDM is trained to do (P1 §3.2.1).

Letters in names: B examples, C H W latent, K neighbours, L context tokens, D their size.
"""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from remembrandt.diffusion.guidance import Context
from remembrandt.diffusion.noise import TRAIN_NOISE, TRAIN_TIMESTEP, seeded_normal, seeded_uniform
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.models.folders import take_weights
from remembrandt.models.objective import Losses, Tensors
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet, run_unet
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings, save_rdm

QUARTILES = ("t0", "t1", "t2", "t3")
_LOG_SAMPLER = SamplerConfig(solver="dpm_solver++", num_inference_steps=20)


class RdmObjective:
    """E‖ε - ε_θ(z_t, t, {φ(y) | y ∈ ξ_k(x, D)})‖², t uniform; the condition is never dropped.

    Batches have `latents_BCHW` (float32, of unit variance) and, unless the model is the baseline, `neighbors_BKD` (raw
    embeddings) and `neighbors_mask_BK`, or `context_BLD` (other context tokens).

    Args:
        first_stage: decodes samples for the log, and is saved with the model.
        codes: φ, where neighbours' codes are the context; it is saved with the model.
        facts: written into the finished model's folder: encoder, database, what it was trained on.
    """

    group_names = QUARTILES

    def __init__(
        self, config: RdmConfig, first_stage: FirstStage, facts: dict[str, object], codes: FirstStage | None = None
    ) -> None:
        self.config, self.first_stage, self.facts, self.codes = config, first_stage, facts, codes
        self.schedule = config.schedule.build()

    def configure_model(self) -> nn.Module:
        """A fresh U-Net."""
        return build_unet(self.config)

    def prepare(self, batch: Tensors, seeds_B: NDArray[np.int64]) -> Tensors:
        """Draws `timesteps_B` (int64, uniform) and `noise_BCHW`; drops a mask that lets every neighbour through.

        Attention is faster without a mask, and the device would have to be waited for to see what is in it.
        """
        uniform_B = seeded_uniform(seeds_B, TRAIN_TIMESTEP)
        full = "neighbors_mask_BK" in batch and bool(batch["neighbors_mask_BK"].all())
        return {
            **{name: tensor for name, tensor in batch.items() if not (full and name == "neighbors_mask_BK")},
            "timesteps_B": (uniform_B * self.schedule.num_timesteps).long(),
            "noise_BCHW": seeded_normal(seeds_B, batch["latents_BCHW"].shape[1:], TRAIN_NOISE),
        }

    def loss(self, model: nn.Module, batch: Tensors) -> Losses:
        """Mean squared error over a latent, of ε or of v, by timestep quartile."""
        timesteps_B, noise_BCHW = batch["timesteps_B"], batch["noise_BCHW"]
        noisy_BCHW = self.schedule.add_noise(batch["latents_BCHW"], noise_BCHW, timesteps_B)
        said_BCHW = run_unet(model, noisy_BCHW, timesteps_B, self.context(batch))
        target_BCHW = self.schedule.target(batch["latents_BCHW"], noise_BCHW, timesteps_B, self.config.prediction)
        errors_B = (said_BCHW.float() - target_BCHW).square().flatten(1).mean(dim=1)
        return Losses(errors_B, groups_B=timesteps_B * len(QUARTILES) // self.schedule.num_timesteps)

    def context(self, batch: Tensors) -> Context | None:
        """What a prepared batch is conditioned on."""
        if self.config.condition == "none":
            return None
        if "context_BLD" in batch:
            return Context(batch["context_BLD"])
        return Context(batch["neighbors_BKD"], batch.get("neighbors_mask_BK"))

    def sample(self, model: nn.Module, batch: Tensors, seeds_B: NDArray[np.int64]) -> torch.Tensor:
        """Pictures from the batch's neighbours, by 20 steps of DPM-Solver++ with guidance 2."""
        count = len(batch["latents_BCHW"])
        context = self.context(batch)
        sampler = RdmSampler(model, self.first_stage, self.config, facts=self.facts)
        settings = SampleSettings(guidance_scale=1.0 if context is None else 2.0, sampler=_LOG_SAMPLER)
        return sampler.sample(SampleBatch.uniform(context, [int(seed) for seed in seeds_B[:count]], settings))

    def load(self, model: nn.Module, folder: Path) -> None:
        """The U-Net of a folder that `save` wrote."""
        take_weights(model, folder / "unet")

    def save(self, model: nn.Module, folder: Path) -> None:
        """`save_rdm`: U-Net, scheduler, first stage, and the facts."""
        save_rdm(folder, model, self.first_stage, self.config, json.loads(json.dumps(self.facts)), self.codes)
