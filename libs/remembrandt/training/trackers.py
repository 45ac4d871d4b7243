"""Where figures and pictures of a run go: TensorBoard always, Weights & Biases and MLflow where they are configured."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from remembrandt.errors import ConfigError
from remembrandt.training.config import TrackersConfig


class Tracker(Protocol):
    """One place that is told."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """A picture of a step."""

    def close(self) -> None:
        """Writes what is left."""


def open_trackers(config: TrackersConfig, run: str, folder: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """All trackers of a run.

    Raises:
        ConfigError: a configured one is not installed.
    """
    trackers: list[Tracker] = [TensorBoard(folder)]
    if config.wandb is not None:
        trackers.append(WeightsAndBiases(config.wandb, run, settings))
    if config.mlflow is not None:
        trackers.append(MlFlow(config.mlflow, run, settings))
    return trackers


class TensorBoard:
    """Event files in a local folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As the protocol says."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """As the protocol says."""
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """As the protocol says."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project; a run that goes on keeps its id."""

    def __init__(self, project: str, run: str, settings: Mapping[str, Any]) -> None:
        self._wandb: Any = _required("wandb", "trackers.wandb")
        self._run = self._wandb.init(project=project, id=run, name=run, resume="allow", config=dict(settings))

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As the protocol says."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """As the protocol says."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """As the protocol says."""
        self._run.finish()


class MlFlow:
    """A run of the experiment named as ours."""

    def __init__(self, uri: str, run: str, settings: Mapping[str, Any]) -> None:
        self._mlflow: Any = _required("mlflow", "trackers.mlflow")
        self._mlflow.set_tracking_uri(uri)
        self._mlflow.set_experiment(run)
        self._mlflow.start_run(run_name=run)
        self._mlflow.log_dict(dict(settings), "config.json")

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As the protocol says."""
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """As the protocol says."""
        self._mlflow.log_image(image, f"{name}/{step:09d}.png")

    def close(self) -> None:
        """As the protocol says."""
        self._mlflow.end_run()


def _required(module: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"'{key}' is set, and {module} is not installed: pip install {module}, or unset it") from None
