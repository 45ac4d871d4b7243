"""How well an autoencoder gives pictures back that it has not seen.

Letters in names: B pictures, C H W.
"""

import json
from collections import defaultdict
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.decode import to_square
from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter
from remembrandt.errors import ConfigError, SourceError
from remembrandt.evaluation.metrics import bootstrap
from remembrandt.evaluation.sheets import SheetCell, SheetRow, render_html
from remembrandt.generation.grid import to_images
from remembrandt.generation.models import best_device, model_folder
from remembrandt.models.first_stage.model import FirstStage, psnr
from remembrandt.models.first_stage.perceptual import Perceptual
from remembrandt.progress import Progress
from remembrandt.storage import open_store

_SHOWN = 4


class FirstStageProtocolConfig(Config):
    """One run of `jobs/evaluate.py --protocol first-stage`.

    Attributes:
        model: folder or name of a first stage.
        where: which rows of the database; by default those that nothing was trained on.
        group_by: column whose values get figures of their own.
        size: edge of the pictures; None: that of the model.
        count: pictures at most, evenly spread over the rows.
        perceptual: as in training.
    """

    protocol: Literal["first-stage"] = "first-stage"
    model: str
    database: str
    out: str
    where: dict[str, tuple[str, ...]] = Field(default={"split": ("held-out",)})
    group_by: str = "style"
    size: int | None = Field(None, ge=8)
    count: int = Field(2000, ge=2)
    perceptual: Literal["st-lpips", "lpips"] = "st-lpips"
    batch: int = Field(64, ge=1)


class FirstStageProtocol:
    """PSNR and perceptual distance of reconstructions; report.json and page.html go to `out`."""

    def __init__(self, config: FirstStageProtocolConfig) -> None:
        self.config, self.device = config, best_device()
        self.stage = FirstStage.load(model_folder(config.model)).to(self.device)
        self.edge = config.size or int(self.stage.network.config["sample_size"])
        if self.edge % self.stage.factor:
            raise ConfigError(f"size {self.edge} is no multiple of {self.stage.factor}, the model's factor: change it")
        self.perceptual = Perceptual(config.perceptual).to(self.device)
        self.database = Database.open(config.database)
        self.out = open_store(config.out)
        self.out.check_writable()

    def run(self) -> dict[str, Any]:
        """Figures in all and for each group."""
        config = self.config
        ids = self.database.select(Filter(equals=config.where) or None)
        if len(ids) < 2:
            raise SourceError(f"{len(ids)} rows of {config.database} are {config.where}: change `where`")
        ids = ids[np.linspace(0, len(ids) - 1, min(config.count, len(ids))).astype(int)]
        groups: list[str] = []
        decibels, distances, shown = [], [], defaultdict[str, list[SheetCell]](list)
        with Progress("reconstructing", len(ids), "pictures") as progress:
            for first in range(0, len(ids), config.batch):
                part = ids[first : first + config.batch]
                squares, own = self._squares(part)
                progress.advance(len(part))
                if not squares:
                    continue
                x_BCHW = _tensor(squares).to(self.device)
                rebuilt_BCHW = self.stage.decode(self.stage.encode(x_BCHW)).clamp(0, 1)
                decibels += psnr(rebuilt_BCHW, x_BCHW).tolist()
                distances += self.perceptual(rebuilt_BCHW, x_BCHW).tolist()
                groups += own
                for square, rebuilt, group in zip(squares, to_images(rebuilt_BCHW), own, strict=True):
                    if len(shown[group]) < 2 * _SHOWN:
                        shown[group] += [SheetCell(square, "original"), SheetCell(rebuilt, "reconstruction")]
        if len(decibels) < 2:
            raise SourceError(f"{len(decibels)} of {len(ids)} rows of {config.database} have an image: 2 are needed")
        report = {"config": config.model_dump(mode="json"), "edge": self.edge, **self._figures(decibels, distances)}
        report["groups"] = {name: self._figures(*(np.array(v)[np.array(groups) == name] for v in (decibels, distances)))
                            for name in sorted(set(groups))}  # fmt: skip
        rows = [SheetRow(name, None, cells) for name, cells in sorted(shown.items())]
        self.out.write("page.html", render_html(rows, f"Reconstructions · {config.model}").encode())
        self.out.write("report.json", (json.dumps(report, indent=1) + "\n").encode())
        return report

    def _squares(self, ids: NDArray[np.int64]) -> tuple[list[Image.Image], list[str]]:
        """Pictures of the rows that have one, and the group of each."""
        columns = ["key", self.config.group_by]
        rows = zip(self.database.images(ids), self.database.rows(ids, columns), strict=True)
        found = [(image, row.fields.get(self.config.group_by, "")) for image, row in rows if image is not None]
        return [to_square(image, self.edge) for image, _ in found], [group for _, group in found]

    def _figures(self, decibels: Any, distances: Any) -> dict[str, Any]:
        return {
            "psnr": asdict(bootstrap(np.array(decibels))),
            self.config.perceptual: asdict(bootstrap(np.array(distances))),
        }


def _tensor(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
