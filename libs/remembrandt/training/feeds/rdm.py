"""What RDM is fed with: a latent and the raw embeddings of its neighbours, or their codes.

Letters in names: B examples (N of several batches), C H W latent, K neighbours, D embedding.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.models.objective import Tensors
from remembrandt.models.rdm.model import context_of_codes
from remembrandt.training.feeds.cache import ExampleCache
from remembrandt.training.feeds.neighbors import NeighborSource, gather_embeddings, neighbor_images
from remembrandt.training.feeds.train_set import TrainSet


class CodesOfRows:
    """Codes of the rows that may be neighbours, kept by an `ExampleCache` of D.

    Args:
        ids_M: the rows that the cache holds, in its order.
    """

    def __init__(self, ids_M: NDArray[np.int64], cache: ExampleCache) -> None:
        self._ids_M, self._cache = ids_M, cache

    def take(self, ids_BK: NDArray[np.int64]) -> torch.Tensor:
        """(B, K, C, H, W); zeros where there is no neighbour."""
        mask_BK = ids_BK != PAD_ID
        places = np.searchsorted(self._ids_M, np.where(mask_BK, ids_BK, self._ids_M[0]))
        codes = self._cache.take(places.reshape(-1))
        return codes.unflatten(0, ids_BK.shape) * torch.from_numpy(mask_BK)[..., None, None, None]


class RdmFeed:
    """A `Feed` of `latents_BCHW`, `neighbors_BKD` and `neighbors_mask_BK`; the baseline gets latents alone.

    Args:
        codes: of the database's rows; then the context is `context_BLD`, codes side by side (P1 App. F.3.5).
    """

    def __init__(
        self,
        train_set: TrainSet,
        latents: ExampleCache,
        neighbors: NeighborSource | None,
        database: Database | None,
        identity: Mapping[str, str],
        codes: CodesOfRows | None = None,
    ) -> None:
        self.identity = identity
        self._train_set, self._latents = train_set, latents
        self._neighbors, self._database, self._codes = neighbors, database, codes

    @property
    def num_examples(self) -> int:
        """Examples of the train set."""
        return len(self._train_set)

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """Latents from the cache."""
        return {"latents_BCHW": self._latents.take(indices_B)}

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """From the source of neighbours."""
        return np.empty((len(indices_N), 0), np.int64) if self._neighbors is None else self._neighbors.ids(indices_N)

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        """Adds the neighbours' embeddings, or their codes."""
        if self._database is None:
            return batch
        if self._codes is not None:
            return {**batch, "context_BLD": context_of_codes(self._codes.take(ids_BK))}
        embeddings_BKD, mask_BK = gather_embeddings(self._database, ids_BK)
        return {
            **batch,
            "neighbors_BKD": torch.from_numpy(embeddings_BKD),
            "neighbors_mask_BK": torch.from_numpy(mask_BK),
        }

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """The neighbours' pictures."""
        return [] if self._database is None else neighbor_images(self._database, self.find(indices_B))

    def close(self) -> None:
        """Gives back the database."""
        if self._database is not None:
            self._database.close()
