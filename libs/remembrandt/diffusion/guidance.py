"""Guidance: how several predictions of the network become one. Knows neither sampler nor network.

Letters in names: B pictures, G guided pictures among them, C H W, L context tokens, D their size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


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


Network = Callable[[torch.Tensor, torch.Tensor, Context], torch.Tensor]
"""(x_BCHW, timesteps_B, context) → ε (B, C, H, W)."""


class Guidance(Protocol):
    """Predicts ε of some pictures from one or several passes of the network."""

    def predict(
        self, network: Network, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """ε of the pictures `rows` (their positions in the whole request), given their noisy states."""


@dataclass(frozen=True)
class ClassifierFree:
    """ε̂ = ε(∅) + s · (ε(c) - ε(∅)), where ∅ is a context of zeros, never trained on (P1 §3.2.1, App. G.1).

    Pictures of s = 1 need no second pass; those of s ≠ 1 have both in one batch.

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
        guided = scale_B != 1
        if not bool(guided.any()):
            return network(x_BCHW, timesteps_B, own)
        null = own.take(guided)
        tokens = torch.cat([own.tokens_BLD, torch.zeros_like(null.tokens_BLD)])
        mask = None if own.mask_BL is None or null.mask_BL is None else torch.cat([own.mask_BL, null.mask_BL])
        both = network(
            torch.cat([x_BCHW, x_BCHW[guided]]),
            torch.cat([timesteps_B, timesteps_B[guided]]),
            Context(tokens, mask),
        )
        noise_BCHW, null_GCHW = both[: len(x_BCHW)], both[len(x_BCHW) :]
        scale_G111 = scale_B[guided].view(-1, *[1] * (x_BCHW.ndim - 1)).to(both.dtype)
        mixed_BCHW = noise_BCHW.clone()
        mixed_BCHW[guided] = null_GCHW + scale_G111 * (noise_BCHW[guided] - null_GCHW)
        return mixed_BCHW
