"""Requests → neighbours → one batch for the sampler → pictures with their records.

Letters in names: B pictures, C H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.generation.contexts import ContextFinder, context_of
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.grid import to_images
from remembrandt.generation.models import best_device, model_folder
from remembrandt.generation.records import Record
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.models.rdm.sampling import OnPicture, RdmSampler, SampleBatch, SampleSettings


@dataclass(frozen=True)
class Picture:
    """A finished picture."""

    image: Image.Image
    record: Record


class Generator:
    """Draws pictures of one model from any databases of its encoder.

    Args:
        name: of the model, for records.
        databases: None: opened by their URIs.
    """

    def __init__(self, sampler: RdmSampler, name: str, databases: OpenDatabases | None = None) -> None:
        self.sampler, self.name = sampler, name
        self.finder = ContextFinder(name, sampler.config, sampler.facts, databases)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """Opens a model: a folder, `s3://…`, or the name of one that ships with the package.

        Args:
            device: None: a GPU where there is one.

        Raises:
            ConfigError: no such model there.
            CorruptionError: a damaged file, by name.
        """
        sampler = RdmSampler.load(model_folder(folder), device or best_device(), dtype)
        return cls(sampler, Path(folder).name)

    def generate(self, requests: Sequence[PictureRequest], on_picture: OnPicture | None = None) -> list[Picture]:
        """All pictures, in the order asked. Databases, strategies, guidance and steps may differ within one call.

        Raises:
            ConfigError: a request without database to a model that retrieves.
            EncoderMismatchError: a database of another encoder than the model was trained with.
            SearchError: an impossible query.
        """
        if not requests:
            return []
        found = self.finder.find(requests)
        settings = tuple(SampleSettings(r.guidance_scale, r.sampler) for r in requests)
        batch = SampleBatch(context_of(self.sampler, found), tuple(request.seed for request in requests), settings)
        images = to_images(self.sampler.sample(batch, on_picture))
        return [Picture(image, own.record) for image, own in zip(images, found, strict=True)]

    def database(self, ref: DatabaseRef) -> Database:
        """The opened version of a reference, checked against the model."""
        return self.finder.database(PictureRequest(database=ref))

    def close(self) -> None:
        """Gives back every database."""
        self.finder.databases.close()
