"""What RDM is fed with: a latent and the raw embeddings of its neighbours.

Letters in names: B examples, C H W latent, K neighbours, D embedding.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.models.objective import Tensors
from remembrandt.training.feeds.cache import ExampleCache
from remembrandt.training.feeds.neighbors import NeighborSource, gather_embeddings
from remembrandt.training.feeds.train_set import TrainSet


class RdmFeed:
    """A `Feed` of `latents_BCHW`, `neighbors_BKD` and `neighbors_mask_BK`; the baseline gets latents alone."""

    def __init__(
        self,
        train_set: TrainSet,
        latents: ExampleCache,
        neighbors: NeighborSource | None,
        database: Database | None,
        identity: Mapping[str, str],
    ) -> None:
        self.identity = identity
        self._train_set, self._latents = train_set, latents
        self._neighbors, self._database = neighbors, database

    @property
    def num_examples(self) -> int:
        """Examples of the train set."""
        return len(self._train_set)

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """Latents from the cache."""
        return {"latents_BCHW": self._latents.take(indices_B)}

    def retrieve(self, indices_B: NDArray[np.int64], batch: Tensors) -> Tensors:
        """Adds the neighbours."""
        if self._neighbors is None or self._database is None:
            return batch
        embeddings_BKD, mask_BK = gather_embeddings(self._database, self._neighbors.ids(indices_B))
        return {
            **batch,
            "neighbors_BKD": torch.from_numpy(embeddings_BKD),
            "neighbors_mask_BK": torch.from_numpy(mask_BK),
        }

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """The neighbours' pictures."""
        if self._neighbors is None or self._database is None:
            return []
        ids_BK = self._neighbors.ids(indices_B)
        pictures = iter(self._database.images(ids_BK[ids_BK != PAD_ID]))
        blank = Image.new("RGB", (8, 8), "white")
        return [[next(pictures) or blank for row in ids if row != PAD_ID] for ids in ids_BK.tolist()]

    def close(self) -> None:
        """Gives back the database."""
        if self._database is not None:
            self._database.close()
