"""Training a first stage: what the job's file says, and what a worker is built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import nn

from remembrandt.configuration import Config
from remembrandt.models.first_stage.config import FirstStageConfig, FirstStageLossConfig
from remembrandt.models.first_stage.critic import MIN_EDGE
from remembrandt.models.first_stage.model import build_autoencoder, parameters_of
from remembrandt.models.first_stage.objective import FirstStageObjective, measure_scale
from remembrandt.models.folders import write_facts
from remembrandt.progress import say
from remembrandt.storage import open_store
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeds.cache import CacheConfig, ExampleCache, fill_cache
from remembrandt.training.feeds.first_stage import FirstStageFeed
from remembrandt.training.feeds.train_set import RowsConfig, TrainSet
from remembrandt.training.order import Order
from remembrandt.training.run import connect_for_training, train

_MEASURED = 512


class TrainFirstStageConfig(Config):
    """One run of `jobs/train_first_stage.py`.

    Attributes:
        name: of the run; the same name and storage go on with a run that was interrupted.
        storage: path or URI for checkpoints, figures and grids of reconstructions.
        output: path or URI for the finished autoencoder.
        train_set: whose pictures are reconstructed.
        cache: path or URI for decoded pixels; without it they are decoded anew in every epoch.
        model: the network, and `loss` what it is trained by.
        loop: the training loop.
    """

    name: str
    storage: str
    output: str
    train_set: RowsConfig
    model: FirstStageConfig
    loss: FirstStageLossConfig = FirstStageLossConfig()
    cache: str | None = None
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _not_compiled(self) -> "TrainFirstStageConfig":
        if self.loop.compile:
            raise ValueError(
                "loop.compile has no effect on a first stage, whose parts are called one by one: set it to false"
            )
        return self

    @model_validator(mode="after")
    def _critic_sees_patches(self) -> "TrainFirstStageConfig":
        if self.loss.adversarial and self.model.size < MIN_EDGE:
            raise ValueError(f"loss.adversarial needs pictures of at least {MIN_EDGE} pixels: raise model.size")
        return self


class ScaledFirstStageObjective(FirstStageObjective):
    """Measures the latent scale on training pictures before it saves."""

    def __init__(
        self, config: FirstStageConfig, loss: FirstStageLossConfig, pixels_BCHW: torch.Tensor, facts: dict[str, Any]
    ) -> None:
        super().__init__(config, loss)
        self._pixels_BCHW, self._facts = pixels_BCHW, facts

    def save(self, model: nn.Module, folder: Path) -> None:
        """The autoencoder with its scale, and the facts of its training."""
        network = measure_scale(model, self._pixels_BCHW)
        super().save(network, folder)
        write_facts(folder, "first_stage", {**self._facts, "model": self.config.model_dump(mode="json")})


@dataclass(frozen=True)
class FirstStageJob:
    """A `TrainJob`."""

    config: TrainFirstStageConfig

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.name

    @property
    def storage(self) -> str:
        """Of checkpoints."""
        return self.config.storage

    @property
    def output(self) -> str:
        """Of the finished autoencoder."""
        return self.config.output

    @property
    def loop(self) -> LoopConfig:
        """The loop's configuration."""
        return self.config.loop

    def settings(self) -> Mapping[str, Any]:
        """The whole configuration."""
        return self.config.model_dump(mode="json")

    def build(self, device: torch.device) -> tuple[FirstStageObjective, FirstStageFeed]:
        """Opens the train set in a worker."""
        config, size = self.config, self.config.model.size
        train_set = TrainSet.open(config.train_set)
        cache = pixel_cache(config)
        cached = ExampleCache.open(cache, train_set) if cache is not None else None
        feed = FirstStageFeed(train_set, size, cached, {"train set": train_set.identity})
        chosen = Order(len(train_set), config.loop.seed).batch(0, min(_MEASURED, len(train_set)))
        pixels_BHWC = np.asarray(feed.read(chosen)["pixels_BHWC"])
        pixels_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255
        manifest = train_set.database.manifest
        facts = {"train_set": {"name": manifest.name, "version": manifest.version, "where": config.train_set.where}}
        return ScaledFirstStageObjective(config.model, config.loss, pixels_BCHW, facts), feed


def train_first_stage(config: TrainFirstStageConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Checks, caches pixels, trains; returns the finished model's report."""
    train_set = TrainSet.open(config.train_set)
    open_store(config.output).check_writable()
    rows = config.train_set.model_copy(update={"version": train_set.database.version})
    config = config.model_copy(update={"train_set": rows})
    if dry_run:
        with torch.device("meta"):
            parameters = parameters_of(build_autoencoder(config.model))
        say(
            f"would train {parameters / 1e6:.2f} M parameters for {config.loop.steps:,} steps of "
            f"{config.loop.batch_size} on {len(train_set):,} pictures, and write {config.output}"
        )
        return {"dry_run": True, "parameters": parameters, "examples": len(train_set), "output": config.output}
    connect_for_training()
    cache = pixel_cache(config)
    if cache is not None:
        fill_cache(cache, train_set)
    return train(FirstStageJob(config))


def pixel_cache(config: TrainFirstStageConfig) -> CacheConfig | None:
    """Where decoded pixels lie."""
    return CacheConfig(config.cache, config.train_set, config.model.size) if config.cache is not None else None
