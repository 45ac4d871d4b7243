"""Drawing pictures with RDM: conditioning tensors in, pictures out. It knows no database and no tenant.

Letters in names: B pictures, P passes over them, C H W, K neighbours, L context tokens, D their size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch

from remembrandt.diffusion.guidance import ClassifierFree, Context
from remembrandt.diffusion.samplers import SamplerConfig, sample
from remembrandt.errors import ConfigError
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.models.folders import (
    OWN_FIRST_STAGE,
    SHARED_FIRST_STAGE,
    find_model,
    load_network,
    moved,
    read_facts,
    save_network,
    write_facts,
    write_json,
)
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import SharedPasses, UNet, run_unet

OnPicture = Callable[[int, int, torch.Tensor], None]
"""Told now and then: steps done, steps in all, the pictures (B, 3, H, W) as they are foreseen."""


@dataclass(frozen=True)
class SampleSettings:
    """How one picture is drawn.

    Attributes:
        guidance_scale: s of ε̂ = ε(∅) + s·(ε(c) - ε(∅)); 1 leaves guidance out.
        sampler: solver, steps, η.
    """

    guidance_scale: float = 2.0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


@dataclass(frozen=True)
class SampleBatch:
    """B pictures to be drawn together, whatever databases, strategies and settings they have.

    Attributes:
        context: neighbours of each, (B, K, D) raw embeddings; a picture with fewer than K has the rest masked. None
            for the baseline, which takes no condition.
        seeds_B: one a picture. The same seed, neighbours and settings give the same picture in any batch.
        settings_B: of each picture.
    """

    context: Context | None
    seeds_B: tuple[int, ...]
    settings_B: tuple[SampleSettings, ...]

    def __post_init__(self) -> None:
        assert len(self.seeds_B) == len(self.settings_B)
        assert self.context is None or len(self.context.tokens_BLD) == len(self.seeds_B)

    @classmethod
    def uniform(cls, context: Context | None, seeds_B: Sequence[int], settings: SampleSettings) -> Self:
        """All pictures with the same settings."""
        return cls(context, tuple(seeds_B), (settings,) * len(seeds_B))


class RdmSampler:
    """A finished RDM, ready to draw.

    Args:
        facts: what the model's folder says of its training: `encoder`, `num_neighbors`, ….
        codes: φ, where the context is neighbours' codes.
    """

    def __init__(
        self,
        unet: UNet,
        first_stage: FirstStage,
        config: RdmConfig,
        facts: dict[str, Any],
        codes: FirstStage | None = None,
    ) -> None:
        self.unet, self.first_stage, self.config, self.facts, self.codes = unet, first_stage, config, facts, codes
        self.schedule = config.schedule.build()
        self._passes = None if config.condition == "none" else SharedPasses(unet)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Opens a folder that training wrote, or a model that ships with the package, by name.

        Raises:
            ConfigError: no such model there.
            CorruptionError: a damaged file, by name.
        """
        root = find_model(folder)
        facts = read_facts(root, "rdm")
        config = RdmConfig.model_validate(facts["model"])
        unet = moved(load_network(root / "unet"), device, dtype).eval()
        shared = facts.get(SHARED_FIRST_STAGE)
        first_stage = FirstStage.load(root / OWN_FIRST_STAGE if shared is None else shared).to(device)
        codes = None if config.codes_size is None else FirstStage.load(root / "codes").to(device)
        return cls(unet, first_stage, config, facts, codes)

    @property
    def size(self) -> int:
        """Edge of the pictures."""
        return self.config.latent_size * self.first_stage.factor

    def compile(self, **options: Any) -> None:
        """Compiles the U-Net (torch.compile); the first picture of each batch size then takes longer."""
        if self._passes is not None:
            self._passes.compile(**options)
        else:
            self.unet = cast(UNet, torch.compile(self.unet, **options))

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.unet.parameters()).device

    @torch.inference_mode()
    def sample(
        self,
        batch: SampleBatch,
        on_picture: OnPicture | None = None,
        every: int = 10,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Draws the pictures of a batch: (B, 3, H, W) float32 in [0, 1].

        Args:
            on_picture: told every `every` steps, with the decoded prediction of x_0.
            on_step: told after every step how many are done, and how many there are; what it raises ends the drawing.

        Raises:
            ConfigError: embeddings of another size than the model was trained with.
        """
        if not batch.seeds_B:
            return torch.zeros(0, 3, self.size, self.size)
        context = self._context(batch)
        scale_B = torch.tensor([s.guidance_scale for s in batch.settings_B], device=self.device)
        guidance = ClassifierFree(context, scale_B) if context is not None else None

        def noise_of(x_PCHW: torch.Tensor, timesteps_P: torch.Tensor, said_PCHW: torch.Tensor) -> torch.Tensor:
            return self.schedule.noise_of(x_PCHW, said_PCHW.float(), timesteps_P, self.config.prediction)

        def network(
            x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, place_P: torch.Tensor, own: Context
        ) -> torch.Tensor:
            assert self._passes is not None
            said_PCHW = self._passes(x_BCHW, timesteps_B, place_P, own)
            return noise_of(x_BCHW[place_P], timesteps_B[place_P], said_PCHW)

        def predict(x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            if guidance is None:
                return noise_of(x_BCHW, timesteps_B, run_unet(self.unet, x_BCHW, timesteps_B, None))
            return guidance.predict(network, x_BCHW, timesteps_B, rows)

        def after_step(done: int, total: int, clean_BCHW: torch.Tensor) -> None:
            if on_step is not None:
                on_step(done, total)
            if on_picture is not None and done % every == 0 and done < total:
                on_picture(done, total, self._decode(clean_BCHW))

        edge = self.config.latent_size
        latents_BCHW = sample(
            predict,
            self.schedule,
            [settings.sampler for settings in batch.settings_B],
            batch.seeds_B,
            (self.config.latent_channels, edge, edge),
            self.device,
            after_step,
        )
        return self._decode(latents_BCHW)

    def _context(self, batch: SampleBatch) -> Context | None:
        if self.config.condition == "none" or batch.context is None:
            if self.config.condition != "none":
                raise ConfigError("this model is conditioned on neighbours, and the batch has none")
            return None
        tokens_BLD, mask_BL = batch.context.tokens_BLD, batch.context.mask_BL
        if tokens_BLD.shape[-1] != self.config.context_dim:
            raise ConfigError(
                f"the neighbours have {tokens_BLD.shape[-1]} dimensions, and the model was trained with "
                f"{self.config.context_dim}: use a database of the encoder that it was trained with"
            )
        dtype = next(self.unet.parameters()).dtype
        tokens_BLD = tokens_BLD.to(self.device, dtype)
        if mask_BL is None or bool(mask_BL.all()):
            return Context(tokens_BLD)
        there_BL = mask_BL.to(self.device)
        # A picture without any neighbour is conditioned on zeros, as guidance's ∅ is.
        return Context(tokens_BLD * there_BL.to(dtype)[..., None], there_BL | ~there_BL.any(dim=1, keepdim=True))

    def _decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return self.first_stage.decode(latents_BCHW).clamp(0, 1)


def save_rdm(
    folder: str | Path,
    unet: UNet,
    first_stage: FirstStage,
    config: RdmConfig,
    facts: dict[str, Any],
    codes: FirstStage | None = None,
) -> None:
    """Writes a model folder in diffusers' layout: unet, scheduler, first_stage, perhaps codes, and remembrandt.json."""
    root = Path(folder)
    save_network(unet, root / "unet")
    first_stage.save(root / OWN_FIRST_STAGE)
    if codes is not None:
        codes.save(root / "codes")
    scheduler = {
        **config.schedule.build().diffusers_config(config.prediction),
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    write_json(root / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **scheduler})
    write_json(
        root / "model_index.json",
        {
            "_class_name": "DiffusionPipeline",
            "unet": ["diffusers", type(unet).__name__],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
    )
    write_facts(root, "rdm", {**facts, "model": config.model_dump(mode="json")})
