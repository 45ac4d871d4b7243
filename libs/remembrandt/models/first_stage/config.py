"""Architectures of the first stage (P1 App. E.1), and the losses that train it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from remembrandt.configuration import Config

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class FirstStageConfig(Config):
    """An autoencoder between square pictures and latents.

    Attributes:
        kind: `kl` is diffusers' AutoencoderKL, `vq` its VQModel.
        size: edge of the pictures that it is trained on; others of a multiple of the factor work as well.
        channels: of each level; every level but the last halves the edge.
        layers: residual blocks a level.
        latent_channels: channels of a latent.
        num_codes: of the codebook (`vq`).
        middle_attention: self-attention at the smallest edge.
    """

    kind: Literal["kl", "vq"] = "vq"
    size: Positive = 256
    channels: tuple[Positive, ...] = (128, 256, 512)
    layers: Positive = 2
    latent_channels: Positive = 3
    num_codes: Positive = 8192
    middle_attention: bool = True

    @property
    def factor(self) -> int:
        """By how much a latent's edge is smaller than the picture's."""
        return int(2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _fits(self) -> "FirstStageConfig":
        if self.size % self.factor:
            raise ValueError(f"size {self.size} is no multiple of {self.factor}")
        return self


class FirstStageLossConfig(Config):
    """Weights of the loss terms.

    Attributes:
        pixel: of |x - x̂|.
        perceptual: of the perceptual distance; 0 leaves the network out.
        perceptual_network: `st-lpips` comes with the package stlpips-pytorch; `lpips` needs torchvision's VGG weights,
            which are fetched.
        kl: of the divergence from a standard normal (`kl` only), summed over a latent and divided by the values of a
            picture: beside a mean over pixels it weighs what it does beside a sum in LDM.
        codebook: of the codebook loss (`vq` only).
        adversarial: of the patch discriminator, before it is balanced against the reconstruction; 0 trains without.
        adversarial_from: step at which it begins.
    """

    pixel: Weight = 1.0
    perceptual: Weight = 1.0
    perceptual_network: Literal["st-lpips", "lpips"] = "st-lpips"
    kl: Weight = 1e-6
    codebook: Weight = 1.0
    adversarial: Weight = 0.0
    adversarial_from: Annotated[int, Field(ge=0)] = 10_000
