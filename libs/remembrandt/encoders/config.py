"""Which encoder to open, and how it shall compute."""

from typing import Annotated, Literal

from pydantic import Field

from remembrandt.configuration import Config

Precision = Literal["auto", "fp32", "fp16", "bf16"]


class EncoderConfig(Config):
    """A CLIP model that open_clip can load.

    Attributes:
        model: `mini-clip` (ships with the package), an open_clip architecture (`ViT-B-32`), a folder that holds
            `open_clip_config.json` and weights, or `hf-hub:organisation/name`.
        pretrained: for an architecture only: a tag that open_clip knows (`laion2b_s34b_b79k`) or a checkpoint file
            (.pt, .pth, .bin, .safetensors).
        precision: of weights and arithmetic; embeddings come out as float32 whatever it is. `auto` is bf16 where the
            processor multiplies bf16 natively, else fp16 on GPUs and fp32 on CPUs.
        device: `auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        batch_size: rows of one forward pass; `auto` starts from what suits the device. Both halve when memory runs out.
        threads: CPU threads of torch; None leaves it to OMP_NUM_THREADS.
    """

    model: str = "mini-clip"
    pretrained: str | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
