"""How fast a run is, and what share of the hardware's peak it uses."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

_PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bf16 FLOP/s of the vendors' data sheets."""
_BACKWARD = 3
"""A backward pass costs about twice a forward pass."""


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_BF16.items() if part in name.replace(" ", "")), None)


def training_flops(forward: Callable[[], object]) -> int:
    """FLOP of one training pass, counted on one forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        forward()
    return _BACKWARD * int(counter.get_total_flops())
