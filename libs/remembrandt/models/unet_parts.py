"""A conditional U-Net of diffusers in parts, so that passes over a picture share what no condition has changed yet.

Letters in names: B pictures, C H W, L tokens, D their size (or that of the time embedding).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

_MASKED = -10_000.0


@dataclass(frozen=True)
class UNetState:
    """How far a U-Net has come with noisy pictures.

    Attributes:
        f_BCHW: features of the last level so far.
        skips: those of all levels, for the way up.
        time_BD: embedding of t, and of what else all levels are told.
        attended: what levels that attend to something are given, by the names that diffusers' blocks have for it.
    """

    f_BCHW: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    time_BD: torch.Tensor
    attended: Mapping[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> "UNetState":
        """Of some pictures, perhaps several times."""
        attended = {name: value[rows] for name, value in self.attended.items()}
        return UNetState(self.f_BCHW[rows], tuple(own[rows] for own in self.skips), self.time_BD[rows], attended)

    def attending(self, tokens_BLD: torch.Tensor, there_BL: torch.Tensor | None) -> "UNetState":
        """From here on, levels attend to those of the tokens that are there; None: to all."""
        attended = {"encoder_hidden_states": tokens_BLD}
        if there_BL is not None:
            attended["encoder_attention_mask"] = (~there_BL).to(tokens_BLD.dtype)[:, None] * _MASKED
        return replace(self, attended=attended)


def enter(unet: Any, x_BCHW: torch.Tensor, time_BD: torch.Tensor) -> UNetState:
    """The state before the first level."""
    f_BCHW = unet.conv_in(x_BCHW)
    return UNetState(f_BCHW, (f_BCHW,), time_BD, {})


def descend(unet: Any, state: UNetState, levels: slice) -> UNetState:
    """Some levels of the way down."""
    f_BCHW, skips = state.f_BCHW, state.skips
    for block in unet.down_blocks[levels]:
        f_BCHW, kept = block(hidden_states=f_BCHW, temb=state.time_BD, **_given(block, state))
        skips += kept
    return replace(state, f_BCHW=f_BCHW, skips=skips)


def turn(unet: Any, state: UNetState) -> UNetState:
    """The middle."""
    return replace(state, f_BCHW=unet.mid_block(state.f_BCHW, state.time_BD, **state.attended))


def ascend(unet: Any, state: UNetState) -> torch.Tensor:
    """The way up: what the network predicts, (B, C, H, W)."""
    f_BCHW, skips = state.f_BCHW, state.skips
    for block in unet.up_blocks:
        count = len(block.resnets)
        given = _given(block, state)
        f_BCHW = block(hidden_states=f_BCHW, temb=state.time_BD, res_hidden_states_tuple=skips[-count:], **given)
        skips = skips[:-count]
    out: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(f_BCHW)))
    return out


def levels_before_attention(unet: Any) -> int:
    """How many levels the way down begins with that attend to nothing."""
    attends = [_attends(block) for block in unet.down_blocks]
    return attends.index(True) if any(attends) else len(attends)


def _given(block: Any, state: UNetState) -> Mapping[str, torch.Tensor]:
    return state.attended if _attends(block) else {}


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
