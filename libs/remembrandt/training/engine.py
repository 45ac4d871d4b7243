"""DeepSpeed behind a small face: a wrapped network, one step, its master weights, and their average."""

import contextlib
import copy
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from remembrandt.encoders.hardware import choose_precision
from remembrandt.errors import ConfigError
from remembrandt.training.attention import attention_on
from remembrandt.training.config import LoopConfig, OptimizerConfig, sharding
from remembrandt.training.schedules import ema_decay

_NEVER = 10**12


def settle_precision(named: str, workers: int, device: torch.device) -> str:
    """What `auto` means to the workers of this run; another name stays. Every worker must call it."""
    if named != "auto":
        return named
    multiplies = torch.tensor(int(choose_precision("auto", device) == "bf16"), device=device)
    if workers > 1:
        dist.all_reduce(multiplies, dist.ReduceOp.MIN)
    return "autocast" if int(multiplies) else "fp32"


class Engine:
    """One network under training on this worker.

    Attributes:
        network: what an objective calls; DeepSpeed's engine around the module.
    """

    def __init__(self, module: nn.Module, loop: LoopConfig, device: torch.device, zero_stage: int) -> None:
        self._precision = loop.precision
        stage = sharding(zero_stage, loop.precision)
        module = module.to(device)
        # What DeepSpeed prints would stand among a job's results.
        with contextlib.redirect_stdout(sys.stderr):
            self.network, self._optimizer, _, _ = _deepspeed(device).initialize(
                model=module,
                optimizer=make_optimizer(loop.optimizer, module.parameters(), spread=stage > 0),
                config=_deepspeed_config(loop, stage),
                dist_init_required=False,
            )
        if stage == 0 and loop.workers == 1:
            self.network.enable_backward_allreduce = False  # it would copy every gradient twice to average it with none
        if loop.compile:
            self.network.compile()
        self._device = device
        # With plain fp32 weights DeepSpeed clips the gradient but keeps its norm to itself.
        self._clips = stage == 0
        self._norm = torch.tensor(float("nan"))
        self._largest = loop.optimizer.gradient_clip

    @property
    def module(self) -> nn.Module:
        """The bare network."""
        inner: nn.Module = self.network.module
        return inner

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """In what precision the forward pass computes."""
        enabled = self._precision == "autocast"
        with (
            torch.autocast(self._device.type, torch.bfloat16, enabled=enabled),
            attention_on(self._device, self._precision),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of one part of the batch."""
        self.network.backward(loss)

    def step(self, learning_rate: float) -> None:
        """After every part: the optimiser moves the weights when the last part of a batch is done."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._clips and self.network.is_gradient_accumulation_boundary():
            self._norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._largest)
        self.network.step()

    def gradient_norm(self) -> torch.Tensor:
        """Of the last batch, before clipping, float32 scalar."""
        norm = self._norm if self._clips else self.network.get_global_grad_norm()
        return torch.as_tensor(float("nan") if norm is None else norm, dtype=torch.float32)

    def masters(self) -> list[torch.Tensor]:
        """This worker's share of the fp32 weights; all of them where nothing is spread."""
        optimizer = self._optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if found := getattr(optimizer, name, None):
                return [tensor.data for tensor in found]
        return [parameter.data for parameter in self.module.parameters()]

    def full_weights(self) -> dict[str, torch.Tensor]:
        """All fp32 weights and buffers on the CPU, from the masters. Every worker must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {name: buffer.detach().cpu() for name, buffer in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter)
            weights[name] = (parameter.detach() if whole is None else whole).float().cpu().clone()
        return weights

    def save(self, folder: Path) -> None:
        """Writes this worker's part of weights and optimiser. Every worker must call it."""
        self.network.save_checkpoint(str(folder), tag="engine", save_latest=False)

    def load(self, folder: Path) -> None:
        """Takes up what `save` wrote, with the same number of workers (any number at stage 0)."""
        path, _ = self.network.load_checkpoint(str(folder), tag="engine")
        assert path is not None, "an engine's checkpoint is missing"


class Average:
    """Exponential moving average of an engine's master weights, spread over the workers as they are."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.shards = [tensor.clone() for tensor in engine.masters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (from 0)."""
        decay = ema_decay(step, self._decay)
        torch._foreach_lerp_(self.shards, self._engine.masters(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands where the masters are; they come back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for kept, own in zip(self.shards, self._engine.masters(), strict=True):
            held = own.clone()
            own.copy_(kept)
            kept.copy_(held)


def averaged_copy(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A network of its own with these weights, ready for sampling, on the module's device, in fp32."""
    parameter = next(module.parameters())
    twin = copy.deepcopy(module).float() if parameter.numel() else module
    twin.load_state_dict(weights)
    return twin.eval().requires_grad_(False)


def _deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(f"training needs DeepSpeed ({error}): pip install 'remembrandt[train]'") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Only inference would use it, and each machine compiles it at its first training: half a minute, and a kill
    # meanwhile leaves a lock that later runs wait for without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _deepspeed_config(loop: LoopConfig, stage: int) -> dict[str, Any]:
    return {
        "train_batch_size": loop.batch_size,
        "train_micro_batch_size_per_gpu": loop.micro_batch,
        "gradient_accumulation_steps": loop.accumulation,
        "gradient_clipping": loop.optimizer.gradient_clip if stage else 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # The loop ends a run that diverges; DeepSpeed would look at each gradient and wait for the device each time.
        "bf16": {"enabled": loop.precision == "bf16", "check_grad_overflow": False},
        # DeepSpeed's engine turns off an autocast that it was not told of.
        "torch_autocast": {"enabled": loop.precision == "autocast", "dtype": "bfloat16"},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], *, spread: bool
) -> torch.optim.Optimizer:
    """The optimiser of a network.

    Args:
        spread: whether it is given a worker's piece of all weights, and not each weight: what is taken over a piece
            would depend on how many workers there are, so Adafactor does not bound the update's mean square there.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if config.kind == "adafactor":
        from transformers.optimization import Adafactor

        return cast(Any, Adafactor)(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            clip_threshold=math.inf if spread else 1.0,
            scale_parameter=False,
            relative_step=False,
        )
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True)
