"""The loop that every worker of a training run goes through; it knows nothing of Ray.

What a step sees and draws follows from (seed, step) alone, so a run that goes on from a checkpoint has the losses of
one that was never interrupted.

Letters in names: B examples, G groups of a loss, F figures, S steps.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from remembrandt.errors import ConfigError, TrainingError
from remembrandt.generation.grid import sample_grid, to_images
from remembrandt.generation.models import model_folder
from remembrandt.models.objective import AdversarialObjective, Losses, Objective, Tensors
from remembrandt.storage import Store, open_store
from remembrandt.threads import compute_alone
from remembrandt.training.attention import checkpointing_on
from remembrandt.training.checkpoints import Position, load_checkpoint, read_position, save_checkpoint, unchanging
from remembrandt.training.config import LoopConfig
from remembrandt.training.console import Console
from remembrandt.training.engine import Average, Engine, averaged_copy, settle_precision
from remembrandt.training.feeding import Fed, Feed, Plan, feed_worker
from remembrandt.training.job import TrainJob
from remembrandt.training.order import Order
from remembrandt.training.output import publish_model
from remembrandt.training.schedules import learning_rate
from remembrandt.training.throughput import peak_flops, training_flops

_SAMPLE_SEED = 1_000

Report = Callable[[Path, int], None]


@dataclass
class Trainer:
    """One worker of a run.

    Attributes:
        report: takes a folder with this worker's part of a checkpoint, and the step.
        loop: the loop's configuration, with the precision that `auto` means here.
    """

    job: TrainJob
    objective: Objective
    feed: Feed
    device: torch.device
    rank: int
    report: Report
    step: int = 0
    loop: LoopConfig = field(init=False)
    _held: list[tuple[int, torch.Tensor, tuple[str, ...]]] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)
    _log_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        precision = settle_precision(self.job.loop.precision, self.job.loop.workers, self.device)
        self.loop = loop = self.job.loop.model_copy(update={"precision": precision})
        torch.manual_seed(loop.seed)
        module = self.objective.configure_model()
        if loop.init_from is not None:
            self.objective.load(module, model_folder(loop.init_from))
        if loop.activation_checkpointing:
            _checkpoint_activations(module, checkpointing_on(self.device, loop.precision))
        critic = self._configure_critic()
        if critic is not None:
            # The loss weighs its parts by gradients of its own, which DeepSpeed allows from stage 1 on.
            self.loop = loop = loop.model_copy(update={"zero_stage": max(1, loop.zero_stage)})
        self.model = Engine(module, loop, self.device, loop.zero_stage)
        self.critic = None if critic is None else Engine(critic, loop, self.device, zero_stage=1)
        self.average = Average(self.model, loop.ema)
        self.order = Order(self.feed.num_examples, loop.seed)

    @cached_property
    def store(self) -> Store:
        """Where the run keeps figures and grids."""
        return open_store(self.job.storage).child(self.job.name)

    @cached_property
    def engines(self) -> dict[str, Engine]:
        """Every network under training."""
        return {"model": self.model, **({"critic": self.critic} if self.critic is not None else {})}

    def restore(self, folder: Path) -> None:
        """Takes up the state of an interrupted run.

        Raises:
            ConfigError: something that the losses depend on has changed since.
        """
        saved = read_position(folder)
        saved.check(self._position())
        load_checkpoint(folder, self.engines, self.average, self.rank)
        self.step = saved.step

    def run(self) -> None:
        """Trains to the end, and writes the finished model."""
        loop = self.loop
        console, measured = self._open_console() if self.rank == 0 else None, False
        try:
            for feds in self._steps():
                if not measured:
                    utilisation, measured = self._utilisation(feds[0]), True
                    if console is not None:
                        console.utilisation = utilisation
                self._held.append((self.step, self._advance(feds), self._log_names))
                self.average.update(self.step)
                self.step += 1
                finished = self.step == loop.steps
                keeps = self.step % loop.checkpoint_every == 0 or finished
                if console is not None:
                    console.waited(sum(f.data_wait_seconds for f in feds), sum(f.retrieval_wait_seconds for f in feds))
                if self.step % loop.log_every == 0 or keeps:
                    rows = self._collect()
                    if console is not None:
                        console.write(rows)
                if loop.sample_every and (self.step % loop.sample_every == 0 or finished):
                    self._sample(console)
                if keeps:
                    if console is not None:
                        console.close_chunk()
                    self._checkpoint()
        finally:
            if console is not None:
                console.close()
        self._finish()

    def _open_console(self) -> Console:
        return Console(self.job.name, self.loop, self.store, self.job.settings(), self.step)

    def _utilisation(self, fed: Fed) -> float | None:
        """Share of all workers' peak that one example a second takes up. Every worker must call it: ZeRO 3 gathers."""
        peak = self.loop.peak_flops or peak_flops(self.device)
        if peak is None:
            return None
        batch = self._moved(fed)
        with self.model.arithmetic():
            flops = training_flops(lambda: self.objective.loss(self.model.network, batch))
        return flops / self.loop.micro_batch / (peak * self.loop.workers)

    def _moved(self, fed: Fed) -> Tensors:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in fed.tensors.items()}

    def _steps(self) -> Iterator[list[Fed]]:
        """The parts of each step's batch that are this worker's, in order."""
        loop = self.loop
        plan = Plan(self.order, loop.steps, loop.batch_size, self.rank, loop.workers, loop.accumulation)
        # A GPU leaves the cores to those who make batches.
        begin = compute_alone if self.device.type == "cpu" else None
        fed = feed_worker(self.feed, self.objective, plan, self.step, loop.prefetch, begin)
        try:
            while self.step < loop.steps:
                yield [next(fed) for _ in range(loop.accumulation)]
        finally:
            cast(Any, fed).close()

    def _advance(self, feds: list[Fed]) -> torch.Tensor:
        """One optimiser step; returns sums over this worker's examples, (F,) float64 on the device."""
        loop, rate = self.loop, learning_rate(self.step, self.loop.steps, self.loop.optimizer)
        total: torch.Tensor | None = None
        for fed in feds:
            batch = self._moved(fed)
            with self.model.arithmetic():
                losses = self._loss(batch)
            self.model.backward(losses.per_example_B.mean())
            self.model.step(rate)
            if self.critic is not None and cast(AdversarialObjective, self.objective).critic_learns(self.step):
                self._train_critic(batch, rate)
            self._log_names = tuple(sorted(losses.logs))
            sums = _sums(losses, len(self.objective.group_names))
            total = sums if total is None else total + sums
        assert total is not None
        self._rates.append(rate)
        norm = self.model.gradient_norm().to(total) * loop.batch_size / loop.workers
        return torch.cat([total, norm[None]])

    def _loss(self, batch: Tensors) -> Losses:
        if self.critic is None:
            return self.objective.loss(self.model.network, batch)
        objective = cast(AdversarialObjective, self.objective)
        return objective.adversarial_loss(self.model.network, self.critic.network, batch, self.step)

    def _train_critic(self, batch: Tensors, rate: float) -> None:
        assert self.critic is not None
        objective = cast(AdversarialObjective, self.objective)
        with self.critic.arithmetic():
            losses = objective.critic_loss(self.model.network, self.critic.network, batch)
        self.critic.backward(losses.per_example_B.mean())
        self.critic.step(rate)

    def _configure_critic(self) -> nn.Module | None:
        configure = getattr(self.objective, "configure_critic", None)
        critic: nn.Module | None = configure() if configure is not None else None
        if critic is not None and self.loop.accumulation > 1:
            raise ConfigError("a critic cannot be trained with loop.accumulation above 1: lower batch_size instead")
        return critic

    def _collect(self) -> list[tuple[int, dict[str, float]]]:
        """Means over the whole batch of every step since the last call. Every worker must call it.

        Raises:
            TrainingError: the run has diverged; nothing of it is kept.
        """
        rows = []
        # A term may join the loss on the way: the critic's does.
        for names, group in groupby(self._held, key=lambda held: held[2]):
            held = list(group)
            sums_SF = torch.stack([figures for _, figures, _ in held]).double()
            if self.loop.workers > 1:
                dist.all_reduce(sums_SF)
            rows += [(held[n][0], self._means(sums, names)) for n, sums in enumerate(sums_SF.cpu().tolist())]
        self._held.clear()
        for step, figures in rows:
            if not math.isfinite(figures["loss"] + figures["gradient_norm"]):
                raise TrainingError(
                    f"{self.job.name} diverges: in step {step} the loss is {figures['loss']:.3g}, the gradient's norm "
                    f"{figures['gradient_norm']:.3g}; lower loop.optimizer.learning_rate, and give the run another name"
                )
        return rows

    def _means(self, sums: list[float], log_names: tuple[str, ...]) -> dict[str, float]:
        """Figures by name, from the sums that `_advance` lays side by side."""
        size, names = self.loop.batch_size, self.objective.group_names
        loss, *others, norm = sums
        groups, counts = others[: len(names)], others[len(names) : 2 * len(names)]
        logs = others[2 * len(names) :]
        return {
            "loss": loss / size,
            **{f"loss/{n}": group / count for n, group, count in zip(names, groups, counts, strict=True) if count},
            **{name: value / size for name, value in zip(log_names, logs, strict=True)},
            "gradient_norm": norm / size,
            "learning_rate": self._rates.pop(0),
        }

    def _position(self) -> Position:
        settings = unchanging(self.loop, self.job.settings())
        return Position.of(self.step, self.loop, settings, self.feed.identity)

    def _checkpoint(self) -> None:
        """Every worker writes and reports its part."""
        folder = Path(tempfile.mkdtemp(prefix="remembrandt-checkpoint-"))
        save_checkpoint(folder, self._position(), self.engines, self.average, self.rank)
        self.report(folder, self.step)

    def _sample(self, console: Console | None) -> None:
        """A grid of samples from the averaged weights, beside their neighbours. Every worker must call it."""
        twin = self._averaged()
        if twin is None or console is None:
            return
        count = min(self.loop.samples, self.loop.batch_size)
        indices_B = Order(self.feed.num_examples, self.loop.seed + 1).batch(0, count)
        seeds_B = Order(self.feed.num_examples, _SAMPLE_SEED).seeds(0, count)
        batch = self.feed.join(self.feed.read(indices_B), self.feed.find(indices_B))
        batch = self.objective.prepare(batch, seeds_B)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        pictures = to_images(self.objective.sample(twin, batch, seeds_B))
        console.picture(self.step, "samples", sample_grid(pictures, self.feed.neighbor_images(indices_B)))

    def _averaged(self) -> nn.Module | None:
        """A network with the averaged weights, on the first worker; None on the others."""
        with self.average.in_place():
            weights = self.model.full_weights()
        if self.rank != 0:
            return None
        torch.manual_seed(self.loop.seed)
        module = self.objective.configure_model() if self.loop.zero_stage == 3 else self.model.module
        return averaged_copy(module.to(self.device), weights)

    def _finish(self) -> None:
        """Writes the averaged weights as a finished model."""
        twin = self._averaged()
        if twin is not None:
            examples = self.step * self.loop.batch_size
            facts = {"steps": self.step, "examples_seen": examples, "precision": self.loop.precision}
            publish_model(self.job.output, lambda folder: self.objective.save(twin, folder), self.job.settings(), facts)


def _sums(losses: Losses, num_groups: int) -> torch.Tensor:
    """Sums over the batch that workers and parts can add up: loss, loss of each group, size of each group, logs."""
    per_example_B = losses.per_example_B.detach().double()
    parts = [per_example_B.sum()[None]]
    if num_groups and losses.groups_B is not None:
        zeros_G = torch.zeros(num_groups, dtype=torch.float64, device=per_example_B.device)
        parts.append(zeros_G.index_add(0, losses.groups_B, per_example_B))
        parts.append(zeros_G.index_add(0, losses.groups_B, torch.ones_like(per_example_B)))
    parts += [losses.logs[name].double().sum()[None] for name in sorted(losses.logs)]
    return torch.cat(parts)


def _checkpoint_activations(module: nn.Module, checkpointing: Callable[..., Any] | None) -> None:
    enable = getattr(module, "enable_gradient_checkpointing", None)
    try:
        if enable is None:
            raise ValueError
        enable(checkpointing)
    except ValueError:  # diffusers' base class has the method for all, and raises where a network does not offer it
        raise ConfigError(
            f"loop.activation_checkpointing: {type(module).__name__} does not offer it; set it to false"
        ) from None
