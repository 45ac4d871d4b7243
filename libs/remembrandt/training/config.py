"""What every training run can be told, whatever the model: the section `loop` of a training job's file."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from remembrandt.configuration import Config

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """The optimiser and its learning rate.

    Attributes:
        kind: `adafactor` (P2's base model) keeps no first moments, and of second ones sums of rows and columns; all of
            them where ZeRO spreads the weights as flat buffers. Its rate is absolute, like Adam's.
        learning_rate: peak.
        schedule: after warm-up: `constant`, or `cosine` down to `final_fraction` of the peak.
        warmup: steps of linear rise.
        gradient_clip: largest norm of the whole gradient.
    """

    kind: Literal["adamw", "adam", "adafactor"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    final_fraction: Fraction = 0.0
    warmup: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0


class TrackersConfig(Config):
    """Where figures and pictures go beside TensorBoard, which is always written.

    Attributes:
        wandb: project of Weights & Biases.
        mlflow: tracking URI of MLflow; the experiment is named as the run.
    """

    wandb: str | None = None
    mlflow: str | None = None


class LoopConfig(Config):
    """The training loop.

    Attributes:
        steps: optimiser steps in all.
        batch_size: examples of one optimiser step over all workers.
        accumulation: parts that a worker's share of the batch is cut into, one after the other.
        workers: Ray Train workers; `gpu`: whether each gets one.
        zero_stage: what DeepSpeed spreads over the workers: 1 optimiser state, 2 gradients as well, 3 weights as well.
            `bf16` at stage 0 runs as stage 1 (see `sharding`).
        precision: `bf16` keeps bf16 weights and fp32 masters; `autocast` computes in bf16 on fp32 weights; `auto` is
            `autocast` where the hardware of every worker multiplies bf16, and fp32 elsewhere: there bf16 takes longer.
        peak_flops: bf16 FLOP/s of a worker's device, by which utilisation is told; None: as its data sheet says, where
            the device is a known one.
        threads: CPU threads of a worker without GPU; 0: its share of the node's cores.
        ema: decay of the averaged weights, which are what is sampled and saved.
        init_from: folder of a finished model to start from instead of fresh weights.
        prefetch: batches that are made ahead; their neighbours are found up to two times eight batches ahead.
        checkpoint_every: steps; `keep` is how many checkpoints stay.
        sample_every: steps between grids of pictures; 0 for none. `samples` is how many pictures.
        max_failures: how often lost workers are replaced, going on from the last checkpoint.
        seed: of weights, order and everything that is drawn.
    """

    steps: Positive = 100_000
    batch_size: Positive = 64
    accumulation: Positive = 1
    workers: Positive = 1
    gpu: bool = False
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    precision: Literal["auto", "fp32", "bf16", "autocast"] = "bf16"
    peak_flops: Annotated[float, Field(gt=0)] | None = None
    threads: Count = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: Decay = 0.9999
    init_from: str | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    prefetch: Count = 2
    log_every: Positive = 20
    checkpoint_every: Positive = 1000
    keep: Positive = 2
    sample_every: Count = 0
    samples: Positive = 16
    max_failures: Count = 3
    seed: int = 0
    trackers: TrackersConfig = TrackersConfig()

    @property
    def micro_batch(self) -> int:
        """Examples that one worker passes through the network at once."""
        return self.batch_size // (self.workers * self.accumulation)

    @property
    def sharding(self) -> int:
        """The ZeRO stage that runs."""
        return sharding(self.zero_stage, self.precision)

    @model_validator(mode="after")
    def _divides(self) -> "LoopConfig":
        if self.batch_size % (self.workers * self.accumulation):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of workers × accumulation "
                f"({self.workers} × {self.accumulation})"
            )
        return self


def sharding(zero_stage: int, precision: str) -> int:
    """Fp32 masters of bf16 weights lie in flat buffers from stage 1 on.

    At stage 0 DeepSpeed keeps one for each weight and waits for the device at every one of them.
    """
    return max(zero_stage, 1) if precision == "bf16" else zero_stage


UNCHANGING = ("batch_size", "optimizer", "ema", "precision", "seed", "init_from")
"""What must stay the same when an interrupted run goes on, or its losses would not be an unbroken run's.

So must `steps` where the learning rate depends on it.
"""
