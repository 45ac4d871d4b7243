"""Architecture of one stage of the Re-Imagen cascade (P2 §3.2, §4)."""

from typing import Annotated

from pydantic import Field, model_validator

from remembrandt.configuration import Config
from remembrandt.diffusion.continuous import CosineSchedule
from remembrandt.diffusion.process import Prediction

Positive = Annotated[int, Field(ge=1)]


class StageConfig(Config):
    """A pixel-space U-Net, cut into a DStack that also encodes the neighbours, and a UStack.

    Attributes:
        size: edge of the picture that this stage draws.
        low_size: edge of c_x, the picture of the stage before; None for the first stage.
        neighbor_size: edge at which neighbours' pictures are encoded; None: `size`.
        channels: of the first level.
        multipliers: channels of each level, in units of `channels`; every level but the last halves the edge. The last
            level's edge is F, that of the features which attend to the neighbours'.
        layers: residual blocks of each level: one number for all, or one a level.
        text_at: edges of the levels that attend to the text (the middle always does).
        text_dim: size of a text token.
        cross_dim: what text tokens are projected to.
        head_width: channels of an attention head.
        num_neighbors: K in training; sampling may use another.
        prediction: what the network predicts, ε or v.
        schedule: of the noise, over continuous t.
    """

    size: Positive = 64
    low_size: Positive | None = None
    neighbor_size: Positive | None = None
    channels: Positive = 512
    multipliers: tuple[Positive, ...] = (1, 2, 3, 4)
    layers: Positive | tuple[Positive, ...] = 3
    text_at: tuple[Positive, ...] = (32, 16, 8)
    text_dim: Positive = 4096
    cross_dim: Positive = 1024
    head_width: Positive = 64
    num_neighbors: Positive = 2
    prediction: Prediction = "epsilon"
    schedule: CosineSchedule = CosineSchedule()

    @property
    def edges(self) -> tuple[int, ...]:
        """Edge of each level."""
        return tuple(self.size >> level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def neighbor_edge(self) -> int:
        """Edge of the neighbours' pictures."""
        return self.neighbor_size or self.size

    @model_validator(mode="after")
    def _fits(self) -> "StageConfig":
        halvings = len(self.multipliers) - 1
        for name, edge in (("size", self.size), ("neighbor_size", self.neighbor_edge)):
            if edge % 2**halvings:
                raise ValueError(f"{name} {edge} cannot be halved {halvings} times")
        if not isinstance(self.layers, int) and len(self.layers) != len(self.multipliers):
            raise ValueError(f"layers names {len(self.layers)} levels, and multipliers {len(self.multipliers)}")
        if odd := [width for width in self.widths if width % self.head_width]:
            raise ValueError(f"{odd[0]} channels cannot be cut into heads of {self.head_width}")
        if lost := [edge for edge in self.text_at if edge not in self.edges]:
            raise ValueError(f"text_at {lost[0]}: the levels have edges {', '.join(map(str, self.edges))}")
        if self.low_size is not None and self.low_size >= self.size:
            raise ValueError(f"low_size {self.low_size} must be below size {self.size}")
        return self
