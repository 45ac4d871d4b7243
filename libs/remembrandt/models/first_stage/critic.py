"""The patch discriminator of a first stage (Esser et al. 2021, Eq. 5–7).

Letters in names: B pictures, C H W.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

MIN_EDGE = 32
"""Smaller pictures leave no patch to judge."""

_MOST = 1e4


class PatchCritic(nn.Module):
    """Judges overlapping patches: (B, 3, H, W) in [-1, 1] → logits (B, 1, H', W')."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            parts += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(16, widths[level]),  # as BatchNorm, but no picture is judged by its batch
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits of every patch; pictures of any precision."""
        logits: torch.Tensor = self.layers(x_BCHW.to(next(self.parameters()).dtype))
        return logits


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """What is computed within passes gradients to the network's input, and none to its parameters."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def hinge(real_logits: torch.Tensor, false_logits: torch.Tensor) -> torch.Tensor:
    """Loss (B,) of the critic."""
    real_B = (1 - real_logits.float()).relu().flatten(1).mean(dim=1)
    false_B = (1 + false_logits.float()).relu().flatten(1).mean(dim=1)
    return (real_B + false_B) / 2


def balance(reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor) -> torch.Tensor:
    """λ that makes both losses pull equally at the decoder's last layer; a constant for the gradient."""
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(0, _MOST).detach()
