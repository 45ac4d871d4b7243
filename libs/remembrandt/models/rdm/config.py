"""Architectures of RDM and of its baseline (P1 Table 5)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from remembrandt.configuration import Config
from remembrandt.diffusion.process import Prediction
from remembrandt.diffusion.schedule import ScheduleConfig

Positive = Annotated[int, Field(ge=1)]


class RdmConfig(Config):
    """A U-Net over latents, conditioned on K neighbour embeddings, and the diffusion that it is trained with.

    Attributes:
        latent_size: edge of the square latent.
        latent_channels: its channels.
        channels: of the first level.
        multipliers: channels of each level, in units of `channels`; every level but the last halves the edge.
        layers: residual blocks a level.
        attention_at: edges of the levels that have attention (the middle always has).
        head_width: channels of an attention head.
        condition: `cross` attends to neighbours (RDM); `none` has self-attention only (the LDM baseline).
        context_dim: size of a context token; for CLIP neighbours, D of the encoder; for codes, K times their channels.
        codes_size: edge in pixels of the neighbours' pictures whose VQGAN codes are the context (P1 App. F.3.5: φ is
            an encoder of its own, and the codes of K neighbours lie side by side); None: φ is CLIP.
        residual_resampling: residual blocks halve and double the edge, and the time scales and shifts their features,
            as in the LDM baseline; only without cross-attention.
        prediction: what the network predicts: ε as in the paper, or v, which a short training learns better, because
            the loss then sees a picture's brightness and layout at the noisy end too.
        schedule: of the noise.
    """

    latent_size: Positive = 64
    latent_channels: Positive = 3
    channels: Positive = 192
    multipliers: tuple[Positive, ...] = (1, 2, 3, 5)
    layers: Positive = 2
    attention_at: tuple[Positive, ...] = (32, 16, 8)
    head_width: Positive = 32
    condition: Literal["cross", "none"] = "cross"
    context_dim: Positive = 512
    codes_size: Positive | None = None
    residual_resampling: bool = False
    prediction: Prediction = "epsilon"
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def edges(self) -> tuple[int, ...]:
        """Edge of each level."""
        return tuple(self.latent_size >> level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @model_validator(mode="after")
    def _fits(self) -> "RdmConfig":
        if self.latent_size % 2 ** (len(self.multipliers) - 1):
            raise ValueError(f"latent_size {self.latent_size} cannot be halved {len(self.multipliers) - 1} times")
        if self.codes_size is not None and self.condition == "none":
            raise ValueError("codes_size needs condition: cross")
        if self.residual_resampling and self.condition == "cross":
            raise ValueError("residual_resampling needs condition: none")
        if odd := [width for width in self.widths if width % self.head_width]:
            raise ValueError(f"{odd[0]} channels cannot be cut into heads of {self.head_width}")
        if lost := [edge for edge in self.attention_at if edge not in self.edges]:
            raise ValueError(f"attention_at {lost[0]}: the levels have edges {', '.join(map(str, self.edges))}")
        return self
