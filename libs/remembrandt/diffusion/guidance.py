"""Guidance: how several predictions of the network become one. Knows neither sampler nor network.

Letters in names: B pictures, G guided pictures among them, P passes of the network, C H W, L context tokens, D their
size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.diffusion.noise import GUIDANCE, Seeds, seeded_uniform


@dataclass(frozen=True)
class Context:
    """What the network is conditioned on.

    Attributes:
        tokens_BLD: neighbour embeddings, or other context tokens.
        mask_BL: bool, which of them exist; None where all do.
    """

    tokens_BLD: torch.Tensor
    mask_BL: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> "Context":
        """The context of some of the pictures."""
        return Context(self.tokens_BLD[rows], None if self.mask_BL is None else self.mask_BL[rows])


Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Context], torch.Tensor]
"""(x_BCHW, timesteps_B, place_P, context) → ε (P, C, H, W) of P passes; `place_P`: which of the pictures each sees."""


class Guidance(Protocol):
    """Predicts ε of some pictures from one or several passes of the network."""

    def predict(
        self, network: Network, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """ε of the pictures `rows` (their positions in the whole request), given their noisy states."""


@dataclass(frozen=True)
class ClassifierFree:
    """ε̂ = ε(∅) + s · (ε(c) - ε(∅)), where ∅ is a context of zeros, never trained on (P1 §3.2.1, App. G.1).

    Pictures of s = 1 need no second pass; those of s ≠ 1 have both in one call of the network.

    Attributes:
        context: of all pictures of the request.
        scale_B: s of each.
    """

    context: Context
    scale_B: torch.Tensor

    def predict(
        self, network: Network, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """As the protocol says."""
        own, scale_B = self.context.take(rows), self.scale_B[rows]
        guided, place_B = scale_B != 1, torch.arange(len(x_BCHW), device=x_BCHW.device)
        if not bool(guided.any()):
            return network(x_BCHW, timesteps_B, place_B, own)
        null = own.take(guided)
        tokens = torch.cat([own.tokens_BLD, torch.zeros_like(null.tokens_BLD)])
        mask = None if own.mask_BL is None or null.mask_BL is None else torch.cat([own.mask_BL, null.mask_BL])
        both = network(x_BCHW, timesteps_B, torch.cat([place_B, place_B[guided]]), Context(tokens, mask))
        noise_BCHW, null_GCHW = both[: len(x_BCHW)], both[len(x_BCHW) :]
        scale_G111 = scale_B[guided].view(-1, *[1] * (x_BCHW.ndim - 1)).to(both.dtype)
        mixed_BCHW = noise_BCHW.clone()
        mixed_BCHW[guided] = null_GCHW + scale_G111 * (noise_BCHW[guided] - null_GCHW)
        return mixed_BCHW


Kept = tuple[bool, bool]
"""Which conditions a pass of the network keeps: text c_p, neighbours c_n."""


class TextNeighborGuidance(Config):
    """Guidance by text and neighbours (P2 §3.3).

    With ε̂_p = w_p·ε(c_p, c_n) - (w_p - 1)·ε(c_n) and ε̂_n = w_n·ε(c_p, c_n) - (w_n - 1)·ε(c_p) (Eq. 6):

    Attributes:
        kind: `interleaved` takes ε̂_p in a share η of the steps, drawn by each picture's seed, and else ε̂_n; `weighted`
            takes η·ε̂_p + (1 - η)·ε̂_n in every step; `joint` guides by both at once, w_p·ε(c_p, c_n) - (w_p - 1)·ε(∅);
            `plain` leaves guidance out.
        text_weight: w_p; `neighbor_weight`: w_n.
        interleave_ratio: η.
    """

    kind: Literal["interleaved", "weighted", "joint", "plain"] = "interleaved"
    text_weight: float = 2.0
    neighbor_weight: float = 2.0
    interleave_ratio: float = Field(0.5, ge=0, le=1)

    def coefficients(self, drawn: float) -> Mapping[Kept, float]:
        """What each pass of the network counts for; `drawn` is R of this step, uniform in [0, 1)."""
        both, no_text, no_neighbors, nothing = (True, True), (False, True), (True, False), (False, False)
        w_p, w_n, eta = self.text_weight, self.neighbor_weight, self.interleave_ratio
        if self.kind == "plain":
            found = {both: 1.0}
        elif self.kind == "joint":
            found = {both: w_p, nothing: 1 - w_p}
        elif self.kind == "weighted":
            found = {both: eta * w_p + (1 - eta) * w_n, no_text: eta * (1 - w_p), no_neighbors: (1 - eta) * (1 - w_n)}
        elif drawn < eta:
            found = {both: w_p, no_text: 1 - w_p}
        else:
            found = {both: w_n, no_neighbors: 1 - w_n}
        return {kept: weight for kept, weight in found.items() if weight != 0}


@dataclass(frozen=True)
class Passes:
    """P passes of the network over B pictures.

    Attributes:
        place_P: int64, which of the B pictures each sees.
        keep_text_P, keep_neighbors_P: bool, which conditions it keeps.
    """

    place_P: torch.Tensor
    keep_text_P: torch.Tensor
    keep_neighbors_P: torch.Tensor


KeepingNetwork = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Passes], torch.Tensor]
"""(x_BCHW, t_B, rows_B, passes) → ε of the P passes; `rows_B`: positions of the pictures in the whole request."""


@dataclass
class MixedGuidance:
    """Pictures with guidance of their own, all passes of a step in one batch.

    Attributes:
        settings_B, seeds_B: of all pictures of the request.
        network: predicts ε of some passes.
    """

    settings_B: Sequence[TextNeighborGuidance]
    seeds_B: Seeds
    network: KeepingNetwork
    _step: int = field(default=0, init=False)

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """ε of the pictures `rows`; to be called once a step, in order."""
        chosen = rows.tolist()
        drawn = seeded_uniform([int(self.seeds_B[row]) for row in chosen], GUIDANCE + self._step).tolist()
        self._step += 1
        passes = [
            (place, *kept, weight)
            for place, (row, uniform) in enumerate(zip(chosen, drawn, strict=True))
            for kept, weight in self.settings_B[row].coefficients(uniform).items()
        ]
        place_P, keep_text_P, keep_neighbors_P, weight_P = (
            torch.tensor(column, device=x_BCHW.device) for column in zip(*passes, strict=True)
        )
        noise_PCHW = self.network(x_BCHW, t_B, rows, Passes(place_P, keep_text_P, keep_neighbors_P))
        weight_P111 = weight_P.view(-1, *[1] * (x_BCHW.ndim - 1))
        return torch.zeros_like(x_BCHW).index_add_(0, place_P, noise_PCHW.float() * weight_P111)
