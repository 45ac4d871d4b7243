"""The U-Net of RDM, made of diffusers' blocks, so that diffusers loads what we save.

Letters in names: B pictures, P passes over them, C H W latent, L context tokens, D their size.
"""

import math
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from remembrandt.diffusion.guidance import Context
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.unet_parts import UNetState, ascend, descend, enter, levels_before_attention, turn

UNet = nn.Module
"""A `UNet2DConditionModel`, or a `UNet2DModel` for the baseline."""

_DOWN = {"cross": "CrossAttnDownBlock2D", "none": "AttnDownBlock2D"}
_UP = {"cross": "CrossAttnUpBlock2D", "none": "AttnUpBlock2D"}
_RESIDUAL_RESAMPLING = {
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
}


def build_unet(config: RdmConfig) -> UNet:
    """ε_θ(z_t, t, {φ(y)}) with fresh weights from torch's default generator, on the default device."""
    attends = [edge in config.attention_at for edge in config.edges]
    common = {
        "sample_size": config.latent_size,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers,
        "norm_num_groups": math.gcd(32, *config.widths),
    }
    kind: Any = UNet2DModel if config.condition == "none" else UNet2DConditionModel
    network: UNet = kind(
        **common,
        down_block_types=[_DOWN[config.condition] if attend else "DownBlock2D" for attend in attends],
        up_block_types=[_UP[config.condition] if attend else "UpBlock2D" for attend in reversed(attends)],
        **_attention(config),
    )
    return network


def _attention(config: RdmConfig) -> dict[str, Any]:
    if config.condition == "none":
        return {"attention_head_dim": config.head_width, **(_RESIDUAL_RESAMPLING if config.residual_resampling else {})}
    # Against its name, `attention_head_dim` is the number of heads of each level here.
    heads = tuple(width // config.head_width for width in config.widths)
    return {"cross_attention_dim": config.context_dim, "attention_head_dim": heads}


def run_unet(unet: nn.Module, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, context: Context | None) -> torch.Tensor:
    """What the network predicts, (B, C, H, W), computed in the dtype of its weights.

    Args:
        unet: the network, perhaps wrapped by DeepSpeed or torch.compile.
    """
    dtype = next(unet.parameters()).dtype
    if context is None:
        return cast(torch.Tensor, unet(x_BCHW.to(dtype), timesteps_B, return_dict=False)[0])
    return cast(
        torch.Tensor,
        unet(
            x_BCHW.to(dtype),
            timesteps_B,
            context.tokens_BLD.to(dtype),
            encoder_attention_mask=context.mask_BL,
            return_dict=False,
        )[0],
    )


class SharedPasses:
    """A U-Net that attends to neighbours, with passes that share what comes before its first attention.

    Guidance has two passes over each picture, which differ in their context alone (P1 §3.2.1).
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet, self._dtype = unet, next(unet.parameters()).dtype
        self._levels = levels_before_attention(unet)
        self._before, self._after = self._before_context, self._with_context

    def compile(self, **options: Any) -> None:
        """Compiles both parts (torch.compile)."""
        self._before = torch.compile(self._before, **options)
        self._after = torch.compile(self._after, **options)

    def __call__(
        self, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, place_P: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """What the network predicts in each pass, (P, C, H, W): `place_P` is the picture that it sees."""
        return self._after(self._before(x_BCHW, timesteps_B).take(place_P), context)

    def _before_context(self, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor) -> UNetState:
        unet: Any = self._unet
        x_BCHW = x_BCHW.to(self._dtype)
        state = enter(unet, x_BCHW, unet.time_embedding(unet.get_time_embed(x_BCHW, timesteps_B)))
        return descend(unet, state, slice(0, self._levels))

    def _with_context(self, state: UNetState, context: Context) -> torch.Tensor:
        unet: Any = self._unet
        state = state.attending(context.tokens_BLD.to(self._dtype), context.mask_BL)
        return ascend(unet, turn(unet, descend(unet, state, slice(self._levels, None))))


def num_parameters(module: nn.Module) -> int:
    """Trained values."""
    return sum(parameter.numel() for parameter in module.parameters())


def context_of_codes(codes_BKCHW: torch.Tensor) -> torch.Tensor:
    """Context from VQGAN codes instead of CLIP (P1 App. F.3.5).

    Args:
        codes_BKCHW: φ's latents of K neighbours before quantisation, (B, K, C, H, W); the paper has K = 4, C = 256,
            H = W = 8.

    Returns:
        (B, H·W, K·C): the neighbours' codes side by side at every place, 64 × 1024 in the paper.
    """
    batch, count, channels, height, width = codes_BKCHW.shape
    return codes_BKCHW.permute(0, 3, 4, 1, 2).reshape(batch, height * width, count * channels)
