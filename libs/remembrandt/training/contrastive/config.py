"""Everything that a contrastive training run can be told."""

from typing import Annotated, Any, Literal

from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.sources import SourceConfig
from remembrandt.encoders.base import CLASS_PROMPT
from remembrandt.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class DataConfig(Config):
    """Which pairs are trained on, and which are kept for evaluation.

    Attributes:
        sources: where images and captions come from; their `entity`, `style` and `split` fields are used.
        styles: styles that are trained on; empty takes all.
        licences: licences that may be trained on; empty takes all.
        unseen_style: never trained on; evaluated as a style that the model has not seen.
        cache: folder on each node for decoded pixels, the teacher's vectors, and text towers that it has taught.
    """

    sources: tuple[SourceConfig, ...]
    styles: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    unseen_style: str = ""
    cache: str = "~/.cache/remembrandt/train_clip"


class DistillationConfig(Config):
    """What the text tower learns from a sentence encoder before it sees an image, and while it does.

    Attributes:
        teacher: folder of a sentence-transformers model (mean pooling), for example all-MiniLM-L6-v2.
        phrases: text files (one phrase a line) or WordNet `dict` folders; the captions are always added.
        steps: of text-only training.
        batch_size: phrases of one such step.
        learning_rate, warmup, weight_decay: of the text-only steps.
        weight: of the distillation loss during contrastive training; 0 leaves it out.
        weight_batch_size: phrases of that loss in each contrastive step.
    """

    teacher: str
    phrases: tuple[str, ...] = ()
    steps: Positive = 2500
    batch_size: Positive = 512
    learning_rate: float = 1.5e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    weight_decay: float = 0.02
    weight: Annotated[float, Field(ge=0)] = 1.0
    weight_batch_size: Positive = 128


class AugmentationConfig(Config):
    """How training images vary: each value is the largest deviation or a probability.

    Attributes:
        zoom: smallest and largest part of the edge that a crop shows.
        aspect: largest relative change of width against height.
        rotate: degrees.
        flip: probability of a mirror image.
        brightness, contrast, saturation: relative changes.
        hue: rotation of the colour circle in degrees.
        grey: probability that colours are removed.
        background: probability that white background is replaced by a plain colour.
        outline: probability that edges are drawn in black; a third of these images keep nothing else.
        erase: probability that a rectangle is blotted out.
    """

    zoom: tuple[float, float] = (0.75, 1.15)
    aspect: float = 0.15
    rotate: float = 12.0
    flip: Fraction = 0.3
    brightness: float = 0.2
    contrast: float = 0.25
    saturation: float = 0.4
    hue: float = 12.0
    grey: Fraction = 0.08
    background: Fraction = 0.3
    outline: Fraction = 0.3
    erase: Fraction = 0.25


class OptimisationConfig(Config):
    """The contrastive steps.

    Attributes:
        steps: optimiser steps.
        entities: different entities in a global batch.
        views: images an entity in a batch, of different styles where it has them.
        learning_rate: peak, of the image tower; warm-up, then cosine to `final_fraction` of it.
        text_learning_rate: peak, of the text tower.
        weight_decay: of AdamW, on matrices.
        warmup: steps.
        ema: decay of the averaged weights that are evaluated and exported.
        image_weight: of the loss that draws images of one entity together.
        smoothing: share of the target that goes to entities that the teacher finds alike (needs distillation).
        smoothing_temperature: how sharply.
        precision: of the arithmetic; weights stay fp32. `auto` is bf16 where the hardware of all workers multiplies it.
    """

    steps: Positive = 4000
    entities: Positive = 192
    views: Positive = 2
    learning_rate: float = 1e-3
    text_learning_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup: Annotated[int, Field(ge=0)] = 200
    final_fraction: Fraction = 0.03
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    gradient_clip: float = 1.0
    image_weight: float = 0.3
    smoothing: Fraction = 0.0
    smoothing_temperature: Annotated[float, Field(gt=0)] = 0.1
    precision: Literal["auto", "bf16", "fp32"] = "auto"


class TrainClipConfig(Config):
    """One run of `jobs/train_clip.py`.

    Attributes:
        name: of the run; the same name and storage continue a run that was interrupted.
        storage: path or URI for checkpoints.
        output: path for the finished model, an open_clip folder.
        model: open_clip's `model_cfg`; `vocab_size` and the tokenizer follow from `num_merges`.
        num_merges: at most so many BPE merges of CLIP's vocabulary are kept; None keeps it whole.
        preprocess: open_clip's `preprocess_cfg`, where it differs from the defaults.
        class_prompt: the text that asks the finished encoder for a class, `{}` standing for its name; `{}` alone where
            captions are plain names.
        workers: Ray Train workers; the global batch is divided among them.
        gpu: whether each worker gets a GPU.
        max_failures: how often lost workers are replaced, going on from the last checkpoint, before the job gives up.
        checkpoint_every, evaluate_every, log_every: steps. An evaluation also exports.
    """

    name: str
    storage: str
    output: str
    data: DataConfig
    model: dict[str, Any]
    num_merges: Positive | None = None
    preprocess: dict[str, Any] = Field(default_factory=dict)
    class_prompt: str = Field(CLASS_PROMPT, pattern=r"\{\}")
    distillation: DistillationConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    workers: Positive = 1
    gpu: bool = False
    max_failures: Annotated[int, Field(ge=0)] = 2
    checkpoint_every: Positive = 200
    evaluate_every: Positive = 1000
    log_every: Positive = 20
    seed: int = 0


_UNCHANGING = ("data", "model", "num_merges", "preprocess", "distillation", "augmentation", "optimisation", "seed")


def check_unchanged(before: TrainClipConfig, now: TrainClipConfig) -> None:
    """Raises ConfigError unless a run that was begun with `before` goes on with `now` as it would have."""
    values, others = (
        config.model_dump(mode="json", include=set(_UNCHANGING), exclude={"data": {"cache"}})
        for config in (before, now)
    )
    for name in _UNCHANGING:
        if values[name] != others[name]:
            raise ConfigError(
                f"the run was started with {name} = {values[name]} and cannot go on with {others[name]}: "
                "restore the setting, or give the run another name"
            )
