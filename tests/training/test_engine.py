"""The optimisers that an engine is given, and networks that it keeps before their first step."""

import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from remembrandt.training.config import LoopConfig, OptimizerConfig
from remembrandt.training.engine import Engine, make_optimizer
from tests.support.processes import free_ports

CASES = tuple(product((0, 1, 2), (0, 2)))
"""ZeRO stage, and steps before a network is kept."""
ADAFACTOR = OptimizerConfig(kind="adafactor", learning_rate=1e-3, weight_decay=0.0)


def moved(weights: list[torch.Tensor], gradients: list[torch.Tensor], *, spread: bool) -> list[torch.Tensor]:
    """What three steps add to each."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = make_optimizer(ADAFACTOR, parameters, spread=spread)
    for _ in range(3):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [(parameter - weight).detach() for parameter, weight in zip(parameters, weights, strict=True)]


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_adafactor_s_rate_is_absolute(size: float) -> None:
    weight, gradient = size * torch.ones(8, 4), torch.randn(8, 4)
    (change,) = moved([weight], [gradient], spread=False)
    assert 0.5e-3 < float(change.abs().mean()) / 3 < 1.5e-3


def test_adafactor_on_pieces_moves_as_on_the_whole() -> None:
    weight, gradient = torch.randn(64), torch.randn(64) * torch.linspace(0.01, 10, 64)
    (whole,) = moved([weight], [gradient], spread=True)
    parts = moved(list(weight.split(24)), list(gradient.split(24)), spread=True)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_networks_are_taken_up_where_they_stood(tmp_path: Path) -> None:
    """Also ones that were not trained yet, as a critic before its time."""
    (port,) = free_ports(1)
    mp.start_processes(_break_off, (port, tmp_path), nprocs=1, start_method="spawn")
    for zero_stage, steps in CASES:
        weights = torch.load(tmp_path / f"{zero_stage}-{steps}.pt", weights_only=True)
        torch.testing.assert_close(weights["broken off"], weights["unbroken"], rtol=0, atol=0)
        assert not torch.equal(weights["unbroken"], weights["before"])


def _break_off(_rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", rank=0, world_size=1)
    x_BD = torch.randn(4, 8)
    for zero_stage, steps in CASES:
        first = _build(zero_stage)
        before = _train(first, x_BD, steps)
        first.save(folder / f"{zero_stage}-{steps}")
        second = _build(zero_stage)
        second.load(folder / f"{zero_stage}-{steps}")
        weights = {"before": before, "unbroken": _train(first, x_BD, 2), "broken off": _train(second, x_BD, 2)}
        torch.save(weights, folder / f"{zero_stage}-{steps}.pt")
    dist.destroy_process_group()


def _build(zero_stage: int) -> Engine:
    torch.manual_seed(0)
    loop = LoopConfig(batch_size=4, precision="fp32", zero_stage=zero_stage, optimizer=ADAFACTOR)
    return Engine(nn.Linear(8, 3), loop, torch.device("cpu"), zero_stage)


def _train(engine: Engine, x_BD: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        engine.backward(engine.network(x_BD).square().mean())
        engine.step(1e-2)
    return engine.full_weights()["weight"]
