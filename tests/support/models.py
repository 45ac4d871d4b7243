"""Tiny real models: the same classes and folders as trained ones, with random weights."""

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from remembrandt.encoders.text import TextConfig, text_fingerprint
from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, with_scale
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet
from remembrandt.models.rdm.sampling import save_rdm
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import ReImagenUNet
from remembrandt.models.reimagen.sampling import save_stage

TINY_FIRST_STAGE = FirstStageConfig(
    kind="kl", size=16, channels=(16, 16), layers=1, latent_channels=4, middle_attention=False
)
TINY_RDM = RdmConfig(
    latent_size=8, latent_channels=4, channels=32, multipliers=(1, 2), layers=1, attention_at=(4,), head_width=16,
    context_dim=32,
)  # fmt: skip


TINY_BASE = StageConfig(
    size=8, channels=16, multipliers=(1, 2), layers=1, text_at=(4,), text_dim=12, cross_dim=16, head_width=16
)
TINY_SUPER = TINY_BASE.model_copy(update={"size": 16, "low_size": 8, "text_at": (8,), "prediction": "v"})


def tiny_stage(config: StageConfig, seed: int = 0) -> ReImagenUNet:
    """A stage of random weights, its conditions strong enough to be seen."""
    torch.manual_seed(seed)
    network = ReImagenUNet(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attn2" in name or "neighbor_attention.to" in name or "class_embedding" in name:
                parameter.mul_(4)
    return network


def save_tiny_cascade(folder: Path, clip: Path) -> Path:
    """Two stages, 8 and 16 pixels, that read token states of a CLIP of width 32."""
    text: TextConfig = TypeAdapter(TextConfig).validate_python(
        {"kind": "clip", "encoder": {"model": str(clip), "precision": "fp32"}}
    )
    facts = {"text": text.model_dump(mode="json"), "text_fingerprint": text_fingerprint(text)}
    for config in (TINY_BASE, TINY_SUPER):
        wider = config.model_copy(update={"text_dim": 32})
        save_stage(folder / str(config.size), tiny_stage(wider), facts)
    return folder


def tiny_first_stage(seed: int = 0) -> FirstStage:
    """Pictures of 16 pixels ↔ latents (4, 8, 8)."""
    torch.manual_seed(seed)
    return FirstStage(with_scale(build_autoencoder(TINY_FIRST_STAGE), 1.5))


def save_tiny_rdm(folder: Path, config: RdmConfig = TINY_RDM, **facts: Any) -> Path:
    """A model folder."""
    torch.manual_seed(1)
    unet = build_unet(config)
    # Fresh attention outputs are nearly nothing: let neighbours matter.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2" in name:
                parameter.mul_(4)
    save_rdm(folder, unet, tiny_first_stage(), config, facts)
    return folder
