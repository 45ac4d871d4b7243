"""Attention on a CPU, in float32 where the rest is in bf16."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from remembrandt.diffusion.guidance import Context
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet, run_unet
from remembrandt.training.attention import attention_on, checkpointing_on

CPU = torch.device("cpu")
SMALL = RdmConfig(
    latent_size=8, latent_channels=4, channels=32, multipliers=(1, 2), layers=1, attention_at=(8, 4), context_dim=16
)


class Recorder(TorchFunctionMode):
    """Notes in what dtypes attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self.dtypes.append(found.dtype)
        return found


def gradients(unet: nn.Module, precision: str) -> tuple[float, list[torch.Tensor], set[torch.dtype]]:
    """Loss and gradients of a masked batch, and in what attention was computed, also where it was computed again."""
    torch.manual_seed(1)
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([5, 300, 900])
    context = Context(torch.randn(3, 4, 16), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool())
    unet.zero_grad()
    with Recorder() as recorder:
        enabled = precision == "autocast"
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), attention_on(CPU, precision):
            said = run_unet(unet, x, t, context)
        loss = said.float().square().mean()
        loss.backward()
    return loss.item(), [own.grad.clone() for own in unet.parameters() if own.grad is not None], set(recorder.dtypes)


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_it_computes_in_float32_and_the_gradients_are_those_of_float32(precision: str) -> None:
    torch.manual_seed(0)
    unet = build_unet(SMALL)
    wanted, exact, _ = gradients(unet, "fp32")
    if precision == "bf16":
        unet = unet.to(torch.bfloat16)
    loss, found, dtypes = gradients(unet, precision)
    assert dtypes == {torch.float32}
    assert loss == pytest.approx(wanted, rel=0.02)
    for own, other in zip(found, exact, strict=True):
        assert (own.float() - other).norm() < 0.1 * other.norm() + 1e-4


def test_activations_that_are_computed_again_are_the_same() -> None:
    torch.manual_seed(0)
    unet = build_unet(SMALL)
    wanted, kept, _ = gradients(unet, "autocast")
    unet.enable_gradient_checkpointing(checkpointing_on(CPU, "autocast"))  # type: ignore[operator]
    loss, again, dtypes = gradients(unet.train(), "autocast")
    assert loss == wanted and dtypes == {torch.float32}
    for own, other in zip(again, kept, strict=True):
        torch.testing.assert_close(own, other)


def test_nothing_changes_on_a_gpu_and_in_fp32() -> None:
    for device, precision in ((torch.device("cuda"), "autocast"), (CPU, "fp32")):
        with attention_on(device, precision) as mode:
            assert mode is None
        assert checkpointing_on(device, precision) is None
