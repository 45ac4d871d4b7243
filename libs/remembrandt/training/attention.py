"""Attention on a CPU: in float32 where the rest computes in bf16.

Over sets as short as those of a small U-Net (4 neighbours, 16 to 256 places) the backward pass of torch's bf16 kernel
takes up to twenty times as long as that of its float32 kernel: a third of the whole backward pass of the small RDM.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint


class Float32Attention(TorchFunctionMode):
    """Within it, `scaled_dot_product_attention` computes in float32, and answers in the dtype that it was asked in."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As torch asks for every function that is called."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        args, kwargs = tree_map_only(torch.Tensor, _in_float32, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(query.dtype)


def attention_on(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """How attention computes on a device, with the rest in `loop.precision`."""
    return Float32Attention() if device.type == "cpu" and precision != "fp32" else nullcontext()


def checkpointing_on(device: torch.device, precision: str) -> Callable[..., Any] | None:
    """How activations are computed again in the backward pass, with attention as in the first; None: as diffusers does.

    It goes to `enable_gradient_checkpointing` of a network.
    """
    if device.type != "cpu" or precision == "fp32":
        return None

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), Float32Attention()

    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _in_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
