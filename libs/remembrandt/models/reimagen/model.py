"""The U-Net of a Re-Imagen stage, made of diffusers' blocks (P2 §3.2, Fig. 3).

```
x_t (B, C, S, S), t, text ─ DStack ─ f (B, d, F, F) ─ attends to ─ f′ ─ UStack ─ ε (B, 3, S, S)
neighbours (B, K, C, S, S), 0, their texts ─ the same DStack ─ (B, K·F·F, d) ─┘
```
Letters in names: B pictures, K neighbours, C H W, L text tokens, N = K·F·F neighbour features, D their size, A heads,
E = D / A.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.unet_parts import UNetState, ascend, descend, enter, levels_before_attention, turn

TIME_SCALE = 1000.0
"""Continuous t in [0, 1] is embedded as a timestep of a thousand."""


@dataclass(frozen=True)
class Text:
    """Token states of a frozen text encoder: (…, L, D), and which are there (…, L).

    A text without any token is the dropped condition: its states are zeros.
    """

    tokens: torch.Tensor
    mask: torch.Tensor

    def flat(self) -> "Text":
        """(B, K, L, D) → (B·K, L, D)."""
        return Text(self.tokens.flatten(0, -3), self.mask.flatten(0, -2))

    def take(self, rows: torch.Tensor) -> "Text":
        """Those of some pictures."""
        return Text(self.tokens[rows], self.mask[rows])

    def kept(self, keep_B: torch.Tensor) -> "Text":
        """Dropped where `keep_B` is False."""
        return Text(self.tokens, self.mask & keep_B.view(-1, *[1] * (self.mask.ndim - 1)))


@dataclass(frozen=True)
class Neighbors:
    """⟨image, text⟩ pairs: pictures (B, K, 3, S, S) in [-1, 1], their texts, and which there are (B, K)."""

    pixels_BKCHW: torch.Tensor
    text: Text
    mask_BK: torch.Tensor


@dataclass(frozen=True)
class NeighborFeatures:
    """What DStack makes of the neighbours; it depends on neither t nor the picture, so sampling computes it once.

    Attributes:
        keys_BANE, values_BANE: what they are attended to by, (B, A, K·F·F, E).
        mask_BN: bool; a picture without any neighbour is the dropped condition.
    """

    keys_BANE: torch.Tensor
    values_BANE: torch.Tensor
    mask_BN: torch.Tensor

    def take(self, rows: torch.Tensor) -> "NeighborFeatures":
        """Those of some pictures."""
        return NeighborFeatures(self.keys_BANE[rows], self.values_BANE[rows], self.mask_BN[rows])

    def kept(self, keep_B: torch.Tensor) -> "NeighborFeatures":
        """Dropped where `keep_B` is False."""
        return NeighborFeatures(self.keys_BANE, self.values_BANE, self.mask_BN & keep_B[:, None])


class NeighborAttention(nn.Module):
    """f′ = f + Attn(f, neighbour features): multi-head attention of every place over all places of all neighbours."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm, self.norm_neighbors = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def keys_and_values(self, features_BND: torch.Tensor, mask_BN: torch.Tensor) -> NeighborFeatures:
        """Features of the neighbours (B, N, D), and which there are, as `forward` attends to them."""
        keys, values = map(self._split, self.to_kv(self.norm_neighbors(features_BND)).chunk(2, dim=-1))
        return NeighborFeatures(keys, values, mask_BN)

    def forward(self, f_BDHW: torch.Tensor, neighbors: NeighborFeatures) -> torch.Tensor:
        """(B, D, F, F) → (B, D, F, F); a picture without neighbours keeps its features."""
        places_BPD = f_BDHW.flatten(2).transpose(1, 2)
        q = self._split(self.to_q(self.norm(places_BPD)))
        some_B = neighbors.mask_BN.any(dim=1)
        mask_B11N = (neighbors.mask_BN | ~some_B[:, None])[:, None, None]
        found = F.scaled_dot_product_attention(q, neighbors.keys_BANE, neighbors.values_BANE, attn_mask=mask_B11N)
        out_BPD = self.to_out(found.transpose(1, 2).flatten(2)) * some_B[:, None, None].to(f_BDHW.dtype)
        return f_BDHW + out_BPD.transpose(1, 2).reshape(f_BDHW.shape)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ReImagenUNet(nn.Module):
    """ε_θ(x_t, c_p, c_n, c_x, t) of one stage."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = build_unet(config)
        self.neighbor_attention = NeighborAttention(config.widths[-1], config.head_width)

    def forward(
        self,
        x_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        text: Text,
        neighbors: Neighbors | NeighborFeatures,
        low_res: "LowRes | None" = None,
    ) -> torch.Tensor:
        """What the stage predicts, (B, 3, S, S).

        Args:
            x_BCHW: noisy picture.
            t_B: float32 in [0, 1].
            neighbors: pairs, or what `encode_neighbors` made of them.
            low_res: c_x; required where the stage has a `low_size`.
        """
        if isinstance(neighbors, Neighbors):
            neighbors = self.encode_neighbors(neighbors)
        return self.ustack(self.dstack_with_text(self.dstack_before_text(x_BCHW, t_B, low_res), text), neighbors)

    def encode_neighbors(self, neighbors: Neighbors) -> NeighborFeatures:
        """f_θ(c_n, 0) of every pair."""
        pixels = neighbors.pixels_BKCHW.flatten(0, 1)
        low_res = None
        if self.config.low_size is not None:
            low_res = LowRes(shrink(pixels, self.config.low_size), pixels.new_zeros(len(pixels), dtype=torch.float32))
        zeros = torch.zeros(len(pixels), device=pixels.device)
        f_MDHW = self.dstack_with_text(self.dstack_before_text(pixels, zeros, low_res), neighbors.text.flat()).f_BCHW
        count, places = neighbors.mask_BK.shape[1], f_MDHW.shape[2] * f_MDHW.shape[3]
        features = f_MDHW.flatten(2).transpose(1, 2).unflatten(0, (-1, count)).flatten(1, 2)
        return self.neighbor_attention.keys_and_values(features, neighbors.mask_BK.repeat_interleave(places, dim=1))

    def dstack_before_text(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, low_res: "LowRes | None") -> UNetState:
        """DStack down to the first level that attends to the text: the same for all passes of a guided step."""
        unet: Any = self.unet
        x_BCHW = self._input(x_BCHW, low_res).to(self.dtype)
        time_BD = unet.time_embedding(unet.get_time_embed(x_BCHW, t_B * TIME_SCALE))
        if low_res is not None:
            time_BD = time_BD + unet.get_class_embed(x_BCHW, low_res.noise_B * TIME_SCALE)
        return descend(unet, enter(unet, x_BCHW, time_BD), slice(0, levels_before_attention(unet)))

    def dstack_with_text(self, state: UNetState, text: Text) -> UNetState:
        """The rest of DStack: the same for all passes that keep the text."""
        unet: Any = self.unet
        there_BL = text.mask
        tokens = unet.encoder_hid_proj((text.tokens * there_BL[..., None]).to(self.dtype)) * there_BL[..., None]
        # A text of no token is attended to as zeros.
        open_BL = there_BL | ~there_BL.any(dim=1, keepdim=True)
        return turn(unet, descend(unet, state.attending(tokens, open_BL), slice(levels_before_attention(unet), None)))

    def ustack(self, state: UNetState, neighbors: NeighborFeatures) -> torch.Tensor:
        """Attention to the neighbours, and UStack: what the stage predicts, (B, 3, S, S)."""
        return ascend(self.unet, replace(state, f_BCHW=self.neighbor_attention(state.f_BCHW, neighbors)))

    def enable_gradient_checkpointing(self, checkpointing: Callable[..., Any] | None = None) -> None:
        """Blocks are computed again in the backward pass, instead of being kept."""
        self.unet.enable_gradient_checkpointing(checkpointing)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def _input(self, x_BCHW: torch.Tensor, low_res: "LowRes | None") -> torch.Tensor:
        if self.config.low_size is None:
            return x_BCHW
        assert low_res is not None, "a super-resolution stage is conditioned on a picture of the stage before"
        grown = F.interpolate(low_res.pixels_BCHW, x_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([x_BCHW, grown.to(x_BCHW.dtype)], dim=1)


@dataclass(frozen=True)
class LowRes:
    """c_x: the picture of the stage before, (B, 3, s, s) in [-1, 1], with noise of level `noise_B` (t in [0, 1])."""

    pixels_BCHW: torch.Tensor
    noise_B: torch.Tensor

    def take(self, rows: torch.Tensor) -> "LowRes":
        """Those of some pictures."""
        return LowRes(self.pixels_BCHW[rows], self.noise_B[rows])


def build_unet(config: StageConfig) -> UNet2DConditionModel:
    """DStack and UStack as one U-Net, which diffusers opens by itself; fresh weights on the default device."""
    attends = [edge in config.text_at for edge in config.edges]
    heads = tuple(width // config.head_width for width in config.widths)
    network: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=config.size,
        in_channels=3 if config.low_size is None else 6,
        out_channels=3,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        norm_num_groups=math.gcd(32, *config.widths),
        down_block_types=["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        up_block_types=["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        encoder_hid_dim=config.text_dim,
        encoder_hid_dim_type="text_proj",
        cross_attention_dim=config.cross_dim,
        # Against its name, this is the number of heads of each level.
        attention_head_dim=heads,
        class_embed_type=None if config.low_size is None else "timestep",
    )
    return network


def shrink(x_BCHW: torch.Tensor, edge: int) -> torch.Tensor:
    """A smaller version of pictures, antialiased."""
    return F.interpolate(x_BCHW, (edge, edge), mode="bilinear", align_corners=False, antialias=True)
