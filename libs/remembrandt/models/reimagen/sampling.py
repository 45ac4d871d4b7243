"""Drawing pictures with Re-Imagen, stage by stage: conditioning tensors in, pictures out.

Letters in names: B pictures, P passes of the network, K neighbours, C H W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from remembrandt.diffusion.guidance import MixedGuidance, Passes, TextNeighborGuidance
from remembrandt.diffusion.noise import LOW_RES_NOISE, seeded_normal
from remembrandt.diffusion.samplers import SamplerConfig, sample
from remembrandt.errors import ConfigError, CorruptionError
from remembrandt.models.folders import find_model, load_network, read_facts, save_network, write_facts
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import LowRes, NeighborFeatures, Neighbors, ReImagenUNet, Text

KIND = "reimagen"
_ATTENTION = "neighbor_attention.safetensors"


@dataclass(frozen=True)
class StageSettings:
    """How one stage draws one picture.

    Attributes:
        low_res_noise: level of the noise that c_x gets, t in [0, 1]; a super-resolution stage was trained with all.
    """

    guidance: TextNeighborGuidance = field(default_factory=TextNeighborGuidance)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    low_res_noise: float = 0.1


@dataclass(frozen=True)
class StageBatch:
    """B pictures to be drawn together, whatever their databases and settings.

    Attributes:
        neighbors: pairs of each; a picture with fewer than K has the rest masked.
        seeds_B: one a picture. The same seed, conditions and settings give the same picture in any batch.
        low_res_BCHW: pictures of the stage before, [0, 1]; None for the first stage.
    """

    text: Text
    neighbors: Neighbors
    seeds_B: tuple[int, ...]
    settings_B: tuple[StageSettings, ...]
    low_res_BCHW: torch.Tensor | None = None


BatchOf = Callable[[int, torch.Tensor | None], StageBatch]
"""(number of a stage, pictures of the stage before it) → what that stage needs."""


class StageSampler:
    """A finished stage, ready to draw.

    Args:
        facts: what the stage's folder says of its training: the text encoder, the database, ….
    """

    def __init__(self, network: ReImagenUNet, facts: dict[str, Any]) -> None:
        self.network, self.facts = network.eval(), facts
        self.config = network.config

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Opens a folder that training wrote, or a stage that ships with the package, by name.

        Raises:
            ConfigError: no such stage there.
            CorruptionError: a damaged file, by name.
        """
        root = find_model(folder)
        facts = read_facts(root, KIND)
        with torch.device("meta"):
            network = ReImagenUNet(StageConfig.model_validate(facts["model"]))
        network.unet = load_network(root / "unet")
        path = root / _ATTENTION
        try:
            network.neighbor_attention.load_state_dict(load_file(path), assign=True)
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CorruptionError(f"{path} cannot be loaded: {reason}; restore it or train anew") from error
        # A CPU's convolutions of few channels are a fifth faster where a pixel's channels lie side by side.
        return cls(network.to(device, dtype).to(memory_format=torch.channels_last), facts)

    def compile(self, **options: Any) -> None:
        """Compiles the parts of the network that sampling calls (torch.compile)."""
        for part in ("dstack_before_text", "dstack_with_text", "ustack"):
            setattr(self.network, part, torch.compile(getattr(self.network, part), **options))

    @torch.inference_mode()
    def sample(
        self, batch: StageBatch, *, reuse_neighbors: bool = True, on_step: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Draws the pictures of a batch: (B, 3, S, S) float32 in [0, 1].

        Args:
            on_step: told after every step how many are done, and how many there are; what it raises ends the drawing.
            reuse_neighbors: False encodes the neighbours in every pass anew: the same pictures, slower.

        Raises:
            ConfigError: text of another encoder, or no pictures of the stage before.
        """
        self._check(batch)
        count, device = len(batch.seeds_B), next(self.network.parameters()).device
        if not count:
            return torch.zeros(0, 3, self.config.size, self.config.size)
        text, neighbors = _to(batch.text, device), _to(batch.neighbors, device)
        features = self.network.encode_neighbors(neighbors)
        low_res = self._low_res(batch, device)

        def predict(x_BCHW: torch.Tensor, t_B: torch.Tensor, rows_B: torch.Tensor, passes: Passes) -> torch.Tensor:
            seen = self.network.dstack_before_text(x_BCHW, t_B, None if low_res is None else low_res.take(rows_B))
            # Passes of a picture that keep the text, or that drop it, are one until they attend to the neighbours.
            reads_U, read_P = torch.unique(passes.place_P * 2 + passes.keep_text_P, return_inverse=True)
            place_U, keep_text_U = reads_U // 2, reads_U % 2 == 1
            read = self.network.dstack_with_text(seen.take(place_U), text.take(rows_B[place_U]).kept(keep_text_U))
            rows_P = rows_B[passes.place_P]
            own = features.take(rows_P) if reuse_neighbors else self._encode(neighbors, rows_P)
            said = self.network.ustack(read.take(read_P), own.kept(passes.keep_neighbors_P)).float()
            x_PCHW, t_P = x_BCHW[passes.place_P], t_B[passes.place_P]
            return self.config.schedule.noise_of(x_PCHW, said, t_P, self.config.prediction)

        guidance = MixedGuidance([s.guidance for s in batch.settings_B], batch.seeds_B, predict)
        edge = self.config.size if low_res is None else self.config.size * low_res.pixels_BCHW.shape[-1] // self._low
        drawn_BCHW = sample(
            guidance.predict,
            self.config.schedule,
            [settings.sampler for settings in batch.settings_B],
            batch.seeds_B,
            (3, edge, edge),
            device,
            None if on_step is None else lambda done, total, clean_BCHW: on_step(done, total),
        )
        return (drawn_BCHW / 2 + 0.5).clamp(0, 1)

    @property
    def _low(self) -> int:
        assert self.config.low_size is not None
        return self.config.low_size

    def _encode(self, neighbors: Neighbors, rows_P: torch.Tensor) -> NeighborFeatures:
        own = Neighbors(neighbors.pixels_BKCHW[rows_P], neighbors.text.take(rows_P), neighbors.mask_BK[rows_P])
        return self.network.encode_neighbors(own)

    def _low_res(self, batch: StageBatch, device: torch.device) -> LowRes | None:
        if batch.low_res_BCHW is None:
            return None
        level_B = torch.tensor([settings.low_res_noise for settings in batch.settings_B], device=device)
        pixels_BCHW = batch.low_res_BCHW.to(device) * 2 - 1
        noise_BCHW = seeded_normal(batch.seeds_B, pixels_BCHW.shape[1:], LOW_RES_NOISE).to(device)
        return LowRes(self.config.schedule.add_noise(pixels_BCHW, noise_BCHW, level_B), level_B)

    def _check(self, batch: StageBatch) -> None:
        if (found := batch.text.tokens.shape[-1]) != self.config.text_dim:
            raise ConfigError(
                f"the text has {found} dimensions, and this stage was trained with {self.config.text_dim}: use the "
                "text encoder that it was trained with"
            )
        if (batch.low_res_BCHW is None) != (self.config.low_size is None):
            wanted = "none" if self.config.low_size is None else f"pictures of {self.config.low_size} pixels"
            raise ConfigError(f"the stage of {self.config.size} pixels starts from {wanted} of the stage before")


class Cascade:
    """Stages one after the other: each starts from the pictures of the one before."""

    def __init__(self, stages: Sequence[StageSampler]) -> None:
        assert stages
        for before, stage in zip([None, *stages], [*stages, None], strict=True):
            wanted = stage.config.low_size if stage is not None else None
            given = before.config.size if before is not None and stage is not None else None
            if wanted != given:
                raise ConfigError(f"a stage that starts from {wanted} pixels cannot follow one of {given}")
        self.stages = tuple(stages)

    def sample(self, batch_of: BatchOf, on_step: Callable[[int, int], None] | None = None) -> list[torch.Tensor]:
        """The pictures of every stage, the last one's last; `on_step` as a stage's own."""
        drawn: list[torch.Tensor] = []
        for number, stage in enumerate(self.stages):
            drawn.append(stage.sample(batch_of(number, drawn[-1] if drawn else None), on_step=on_step))
        return drawn


def save_stage(folder: str | Path, network: ReImagenUNet, facts: dict[str, Any]) -> None:
    """Writes a stage: `unet/` as diffusers opens it, the attention to neighbours, and `remembrandt.json`."""
    root = Path(folder)
    save_network(network.unet, root / "unet")
    attention = {name: value.contiguous() for name, value in network.neighbor_attention.state_dict().items()}
    save_file(attention, root / _ATTENTION)
    write_facts(root, KIND, {**facts, "model": network.config.model_dump(mode="json")})


def _to(value: Any, device: torch.device) -> Any:
    """A record of tensors, moved."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return type(value)(*(_to(getattr(value, name), device) for name in value.__dataclass_fields__))
