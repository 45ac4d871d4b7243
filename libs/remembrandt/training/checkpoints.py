"""What a run keeps so that it can go on: networks, averages, position, configuration, and what it was fed with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from remembrandt.errors import ConfigError
from remembrandt.training.config import UNCHANGING, LoopConfig
from remembrandt.training.engine import Average, Engine

_STATE = "state.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands, and under what conditions.

    Attributes:
        step: optimiser steps that are done; everything that is drawn follows from it and the seed.
    """

    step: int
    workers: int
    zero_stage: int
    settings: Mapping[str, Any]
    identity: Mapping[str, str]

    @classmethod
    def of(cls, step: int, loop: LoopConfig, settings: Mapping[str, Any], identity: Mapping[str, str]) -> "Position":
        """The position of a run with this configuration."""
        return cls(step, loop.workers, loop.sharding, settings, dict(identity))

    def check(self, now: "Position") -> None:
        """Raises ConfigError unless a run under `now` goes on exactly as this one would have."""
        for name, value in self.settings.items():
            if now.settings.get(name) != value:
                raise ConfigError(
                    f"the run was started with {name} = {value} and cannot go on with {now.settings.get(name)}: "
                    "restore the setting, or give the run another name"
                )
        for name, value in self.identity.items():
            if now.identity.get(name) != value:
                raise ConfigError(
                    f"the run was started with {name} {value}, and finds {now.identity.get(name)} now: "
                    "restore it, or give the run another name"
                )
        spread = max(self.zero_stage, now.zero_stage) > 0
        if self.zero_stage != now.zero_stage or (spread and self.workers != now.workers):
            raise ConfigError(
                f"the run's checkpoint is of ZeRO stage {self.zero_stage} on {self.workers} workers and cannot be "
                f"taken up at stage {now.zero_stage} on {now.workers}: only stage 0 may change its workers, "
                "and bf16 runs at stage 1 at least"
            )


def unchanging(loop: LoopConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings, those that must stay the same over its life."""
    values = loop.model_dump(mode="json")
    names = [*UNCHANGING, *(["steps"] if loop.optimizer.schedule == "cosine" else [])]
    sections = {name: settings[name] for name in ("model", "loss") if name in settings}
    return {**sections, **{f"loop.{name}": values[name] for name in names}}


def save_checkpoint(
    folder: Path, position: Position, engines: Mapping[str, Engine], average: Average, rank: int
) -> None:
    """Writes this worker's part; every worker must call it, each with a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, engine in engines.items():
        engine.save(folder / name)
    if rank == 0 or position.zero_stage > 0:
        torch.save(average.shards, folder / _average_file(rank))
    if rank == 0:
        (folder / _STATE).write_text(json.dumps(asdict(position), indent=1))


def read_position(folder: Path) -> Position:
    """Where the run of a checkpoint stands."""
    return Position(**json.loads((folder / _STATE).read_text()))


def load_checkpoint(folder: Path, engines: Mapping[str, Engine], average: Average, rank: int) -> None:
    """Takes up the state of every network."""
    for name, engine in engines.items():
        engine.load(folder / name)
    own = folder / _average_file(rank)
    shards = torch.load(own if own.is_file() else folder / _average_file(0), map_location="cpu", weights_only=True)
    for kept, saved in zip(average.shards, shards, strict=True):
        kept.copy_(saved)


def _average_file(rank: int) -> str:
    return f"average-{rank:05d}.pt"
