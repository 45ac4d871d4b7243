"""The training loop that every worker runs: text-only lessons first, then image–text pairs; checkpoints and resume.

Step numbers run through both stages. What a step sees depends on (seed, step) alone, so a resumed run goes on exactly
where the checkpoint was taken.

Shapes: B images, P texts (one an entity), V views, C channels, H W image, S stored edge, D embedding.
"""

import copy
import math
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F

from remembrandt.allocation import keep_freed_memory
from remembrandt.configuration import dump_config, load_config
from remembrandt.encoders.text_tower import encode_text_trimmed
from remembrandt.progress import Progress, say
from remembrandt.training.contrastive.augment import augment
from remembrandt.training.contrastive.config import TrainClipConfig, check_unchanged
from remembrandt.training.contrastive.data import trained_on
from remembrandt.training.contrastive.evaluation import evaluate, summary
from remembrandt.training.contrastive.export import export_model
from remembrandt.training.contrastive.loss import (
    average_gradients,
    gather,
    gather_labels,
    image_text_loss,
    same_entity_loss,
    teacher_loss,
)
from remembrandt.training.contrastive.setup import Workbench, set_up
from remembrandt.training.engine import settle_precision
from remembrandt.training.worker import share_of_cores

_CHECKPOINT_FILE, _CONFIG_FILE = "state.pt", "config.yaml"
_MAX_LOGIT_SCALE = math.log(100)
_BUCKET = 8


def train_worker(values: dict[str, Any]) -> None:
    """Ray Train's entry point; `values` is a dumped TrainClipConfig."""
    config = TrainClipConfig.model_validate(values)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(share_of_cores())
    bench = set_up(config, device, context.get_local_rank())
    trainer = Trainer(bench, context.get_world_rank(), context.get_world_size())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        trainer.restore(checkpoint)
    else:
        trainer.skip_taught()
    trainer.run()


@dataclass
class Trainer:
    """State of one worker that changes from step to step."""

    bench: Workbench
    rank: int
    workers: int
    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.bench.config
        self.text_steps = config.distillation.steps if config.distillation else 0
        self.total_steps = self.text_steps + config.optimisation.steps
        precision = settle_precision(config.optimisation.precision, self.workers, self.bench.device)
        self.autocast = partial(torch.autocast, self.bench.device.type, torch.bfloat16, enabled=precision != "fp32")
        self.model = self.bench.model.train().to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = self._make_optimizer()

    def run(self) -> None:
        """Trains to the end, checkpoints on the way, exports."""
        config = self.bench.config
        if self.rank == 0:
            plan = self.bench.plan
            parameters = sum(parameter.numel() for parameter in self.model.parameters())
            say(f"{plan.num_rows:,} images of {len(plan.entity_names):,} entities; {parameters / 1e6:.1f} M parameters")
        with Progress("train_clip", self.total_steps, "steps", interval=10, done=self.step) as progress:
            while self.step < self.total_steps:
                loss = self._advance()
                if self.rank == 0:
                    progress.advance()
                    if self.step % config.log_every == 0:
                        self.losses.append((self.step, loss))
                        say(f"step {self.step}: loss {loss:.4f}")
                finished = self.step == self.total_steps
                seen = self.step - self.text_steps
                if not finished and seen > 0 and seen % config.evaluate_every == 0:
                    self._export()
                if self.step % config.checkpoint_every == 0 or finished:
                    self._checkpoint(loss)
        self._export()

    def skip_taught(self) -> None:
        """Passes over the text stage if the cache holds a text tower that was taught exactly so."""
        taught = self.bench.taught
        if taught is not None and taught.is_file():
            kept = torch.load(taught, map_location="cpu", weights_only=True)
            self.model.load_state_dict(kept["model"], strict=False)
            self.ema.load_state_dict(self.model.state_dict())
            self.step, self.losses = self.text_steps, kept["losses"]

    def _finish_text_stage(self) -> None:
        """Keeps the taught text tower for other runs, and turns to the pairs with a new optimiser."""
        taught = self.bench.taught
        if self.rank == 0 and taught is not None and not taught.is_file():
            state = {name: value for name, value in self.model.state_dict().items() if not name.startswith("visual.")}
            partial = taught.with_suffix(".tmp")
            torch.save({"model": state, "losses": self.losses}, partial)
            partial.replace(taught)
        self.optimizer = self._make_optimizer()

    def restore(self, checkpoint: ray.train.Checkpoint) -> None:
        """Takes over the state of an interrupted run.

        Raises:
            ConfigError: something that the losses depend on has changed since.
        """
        with checkpoint.as_directory() as folder:
            check_unchanged(load_config(TrainClipConfig, Path(folder) / _CONFIG_FILE), self.bench.config)
            state = torch.load(Path(folder) / _CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        self.step, self.losses = state["step"], state["losses"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer = self._make_optimizer()
        if state["in_text_stage"] == self._in_text_stage:
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def _in_text_stage(self) -> bool:
        return self.step < self.text_steps

    def _advance(self) -> float:
        """One optimiser step; returns the mean loss over all workers."""
        config = self.bench.config
        if self.step == self.text_steps and self.text_steps:
            self._finish_text_stage()
        self._set_learning_rates()
        with self.autocast():
            loss = self._text_loss() if self._in_text_stage else self._pair_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, config.optimisation.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        self._average_weights()
        self.step += 1
        return float(gather(loss.detach().float().view(1)).mean())

    def _text_loss(self) -> torch.Tensor:
        """Agreement with the teacher on phrases of about one length, so that little is padded."""
        distillation = self.bench.config.distillation
        assert distillation is not None
        rows = self._draw_phrases(distillation.batch_size)
        return self._teacher_loss(rows)

    def _pair_loss(self) -> torch.Tensor:
        config, bench = self.bench.config.optimisation, self.bench
        batch = bench.plan.draw(self.step).share(self.rank, self.workers)
        images_BD = F.normalize(self.model.encode_image(self._pixels(batch.rows_PV.reshape(-1))).float(), dim=-1)
        tokens_PT = bench.tokenizer(batch.captions).to(bench.device)
        texts_PD = F.normalize(encode_text_trimmed(self.model, tokens_PT).float(), dim=-1)
        text_entities_P = torch.from_numpy(batch.entities_P).to(bench.device)
        image_entities_B = text_entities_P.repeat_interleave(config.views)
        images_BD, texts_PD = gather(images_BD), gather(texts_PD)
        image_entities_B, text_entities_P = gather_labels(image_entities_B), gather_labels(text_entities_P)
        alike_EE = bench.lessons.alike_EE.to(bench.device) if bench.lessons else None
        scale = self.model.logit_scale.exp()
        loss = image_text_loss(
            images_BD, texts_PD, image_entities_B, text_entities_P, scale, alike_EE, config.smoothing
        )
        if config.image_weight and config.views > 1:
            loss = loss + config.image_weight * same_entity_loss(images_BD, image_entities_B)
        distillation = bench.config.distillation
        if distillation is not None and distillation.weight:
            loss = loss + distillation.weight * self._teacher_loss(self._draw_phrases(distillation.weight_batch_size))
        return loss

    def _teacher_loss(self, rows: torch.Tensor) -> torch.Tensor:
        lessons = self.bench.lessons
        assert lessons is not None
        students_ND = encode_text_trimmed(self.model, lessons.tokens_NT[rows].long().to(self.bench.device))
        return teacher_loss(F.normalize(students_ND.float(), dim=-1), lessons.targets_ND[rows].to(self.bench.device))

    def _draw_phrases(self, count: int) -> torch.Tensor:
        """This worker's rows of the step's phrases: an eighth of them captions, all of about one length.

        Eight steps draw together, sort by length, and take one slice each in random order.
        """
        lessons = self.bench.lessons
        assert lessons is not None
        total = len(lessons.tokens_NT)
        rng = np.random.default_rng((self.bench.config.seed, 1, self.step // _BUCKET))
        num_captions = count * _BUCKET // 8
        rows = np.concatenate(
            [
                rng.integers(0, total, count * _BUCKET - num_captions),
                rng.integers(total - lessons.num_captions, total, num_captions),
            ]
        )
        slices = rows[np.argsort(lessons.lengths[rows], kind="stable")].reshape(_BUCKET, count)
        chosen = slices[rng.permutation(_BUCKET)[self.step % _BUCKET]]
        return torch.from_numpy(chosen[self.rank :: self.workers])

    def _pixels(self, rows_B: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        """Augmented, normalised images (B, 3, H, W) of these rows."""
        bench = self.bench
        seed = np.random.default_rng((bench.config.seed, 2, self.step, self.rank)).integers(2**31)
        generator = torch.Generator().manual_seed(int(seed))
        stored_BSSC = torch.from_numpy(bench.pairs.train_pixels[rows_B])
        height, width = bench.pairs.pixels.shape[1:3]
        with torch.autocast(bench.device.type, enabled=False):
            x_BCHW = augment(stored_BSSC, height, width, bench.config.augmentation, generator).to(bench.device)
            x_BCHW = (x_BCHW - bench.normalise.mean_C11) / bench.normalise.std_C11
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    def _make_optimizer(self) -> torch.optim.AdamW:
        """AdamW on what the stage trains; matrices decay, biases, norms and the temperature do not."""
        config = self.bench.config
        decay = config.optimisation.weight_decay
        if config.distillation is not None and self._in_text_stage:
            decay = config.distillation.weight_decay
        groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            tower = "image" if name.startswith("visual.") or name == "logit_scale" else "text"
            if tower == "image" and self._in_text_stage:
                continue
            groups.setdefault((tower, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        return torch.optim.AdamW(
            [{"params": found, "weight_decay": rate, "tower": tower} for (tower, rate), found in groups.items()],
            betas=(0.9, 0.98),
        )

    def _set_learning_rates(self) -> None:
        config, optimisation = self.bench.config, self.bench.config.optimisation
        if config.distillation is not None and self._in_text_stage:
            shape = _schedule(self.step, self.text_steps, config.distillation.warmup, optimisation.final_fraction)
            peaks = {"text": config.distillation.learning_rate, "image": 0.0}
        else:
            done, steps = self.step - self.text_steps, optimisation.steps
            shape = _schedule(done, steps, optimisation.warmup, optimisation.final_fraction)
            peaks = {"text": optimisation.text_learning_rate, "image": optimisation.learning_rate}
        for group in self.optimizer.param_groups:
            group["lr"] = peaks[group["tower"]] * shape

    def _average_weights(self) -> None:
        """Moves the average towards the weights; the young average follows them closely."""
        done = max(self.step - self.text_steps, 0) + 1
        decay = 0.0 if self._in_text_stage else min(self.bench.config.optimisation.ema, done / (done + 10))
        with torch.no_grad():
            for kept, new in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)

    def _checkpoint(self, loss: float) -> None:
        """Rank 0 saves; reporting is a barrier for all."""
        if self.rank != 0:
            ray.train.report({"step": self.step, "loss": loss})
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "step": self.step,
                "losses": self.losses,
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "in_text_stage": self.step - 1 < self.text_steps,
            }
            torch.save(state, Path(folder) / _CHECKPOINT_FILE)
            (Path(folder) / _CONFIG_FILE).write_text(dump_config(self.bench.config))
            ray.train.report({"step": self.step, "loss": loss}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _export(self) -> None:
        """Evaluates the averaged weights and writes them to the output folder."""
        if self.rank != 0:
            return
        bench = self.bench
        with self.autocast():
            metrics = evaluate(self.ema, bench.tokenizer, bench.normalise, bench.pairs, bench.config.data)
        say(f"step {self.step}: recall@10 {summary(metrics)}")
        report = {
            "step": self.step,
            "total_steps": self.total_steps,
            "metrics": metrics,
            "losses": self.losses,
            "training": self._credits(),
            "config": bench.config.model_dump(mode="json"),
        }
        config, state = bench.config, self.ema.state_dict()
        preprocess, prompt = config.preprocess, config.class_prompt
        export_model(config.output, state, bench.model_config, preprocess, prompt, bench.merges, report)

    def _credits(self) -> dict[str, Any]:
        """What the weights have seen: numbers, styles with artists and licences."""
        seen = [pair for pair in self.bench.pairs.pairs if trained_on(pair, self.bench.config.data)]
        styles = sorted({(pair.style, pair.artist, pair.licence) for pair in seen})
        return {
            "images": len(seen),
            "entities": len(self.bench.plan.entity_names),
            "styles": [{"style": style, "artist": artist, "licence": licence} for style, artist, licence in styles],
        }


def _schedule(step: int, total: int, warmup: int, final: float) -> float:
    """Linear warm-up, then cosine from 1 to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
