"""What `auto` means: bf16 where every worker's hardware multiplies it."""

import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from remembrandt.training.engine import settle_precision
from tests.support.processes import free_ports

MULTIPLIES = "remembrandt.encoders.hardware.cpu_multiplies_bf16"


@pytest.mark.parametrize("workers", [[True], [False], [True, True], [True, False]])
def test_auto_is_bf16_where_every_worker_multiplies_it(workers: Sequence[bool], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    mp.start_processes(_settle, (workers, port, tmp_path), nprocs=len(workers), start_method="spawn")
    wanted = "autocast" if all(workers) else "fp32"
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == [wanted] * len(workers)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_what_is_named_stays(precision: str) -> None:
    with patch(MULTIPLIES, side_effect=AssertionError):
        assert settle_precision(precision, 2, torch.device("cpu")) == precision


def _settle(rank: int, multiply: Sequence[bool], port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=len(multiply))
    with patch(MULTIPLIES, return_value=multiply[rank]):
        (folder / str(rank)).write_text(settle_precision("auto", len(multiply), torch.device("cpu")))
    dist.destroy_process_group()
