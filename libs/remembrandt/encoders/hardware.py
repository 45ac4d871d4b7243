"""What suits the machine: device, precision, rows of a forward pass."""

from typing import Final

import torch

from remembrandt.encoders.config import Precision
from remembrandt.errors import ConfigError

# Measured with ViT-B/32 on an AVX-512 core: 40.5 images/s at 4 rows, 43.1 at 16, 42.6 at 64; a text of up to 16 tokens
# takes 26 ms at 1 row, 47 at 4 (mini-CLIP: 1.6 and 4.6), and most texts and images that somebody searches with come
# alone. So a CPU gets small batches; a GPU needs large ones to be busy.
_CPU_ROWS: Final = (16, 1)
_GPU_ROWS: Final = (512, 512)


def choose_device(name: str) -> torch.device:
    """The device that a configuration names.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}': use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}' is not here: {torch.cuda.device_count()} CUDA GPUs are visible; use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device '{name}' is not here: use cpu or auto")
    return device


def choose_precision(precision: Precision, device: torch.device) -> str:
    """fp32, fp16 or bf16: `auto` takes bf16 where the hardware multiplies it, else fp16 on GPUs and fp32 on CPUs."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if cpu_multiplies_bf16() else "fp32"
    return "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 dot products (AVX512-BF16, AMX, or Arm's BF16); elsewhere bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def auto_batch_sizes(device: torch.device) -> tuple[int, int]:
    """Rows of one forward pass: for the images of a database, and for what is searched with."""
    return _CPU_ROWS if device.type == "cpu" else _GPU_ROWS
