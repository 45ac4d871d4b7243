"""What a stage of Re-Imagen is fed with: a picture, its caption, and ⟨image, text⟩ pairs as neighbours.

Letters in names: B examples (N of several batches), K neighbours, S edge, L tokens, D size of a token's state, M rows.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.encoders.text import TextEncoder
from remembrandt.models.objective import Tensors
from remembrandt.training.feeds.cache import ExampleCache
from remembrandt.training.feeds.neighbors import NeighborSource, neighbor_images
from remembrandt.training.feeds.train_set import TrainSet


class PairRows:
    """Pictures and token states of rows, from caches or computed when they are asked for. Thread-safe.

    Args:
        pixels: of all the rows, of edge S; None decodes from the row store.
        tokens: of all the rows; None encodes captions with `encoder`.
    """

    def __init__(
        self,
        rows: TrainSet,
        size: int,
        pixels: ExampleCache | None,
        tokens: ExampleCache | None,
        encoder: TextEncoder | None,
    ) -> None:
        assert tokens is not None or encoder is not None
        self.rows, self._size, self._pixels, self._tokens, self._encoder = rows, size, pixels, tokens, encoder

    def pixels(self, indices_B: NDArray[np.int64]) -> torch.Tensor:
        """(B, S, S, 3) uint8."""
        if self._pixels is not None:
            return self._pixels.take(indices_B)
        return torch.from_numpy(self.rows.pixels(indices_B, self._size))

    def tokens(self, indices_B: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, L, D) float32, and which tokens there are (B, L)."""
        if self._tokens is not None:
            states = self._tokens.take(indices_B)
            return states.float(), (states != 0).any(dim=-1)
        assert self._encoder is not None
        found = self._encoder.encode(self.rows.captions(indices_B))
        return torch.from_numpy(found.tokens).float(), torch.from_numpy(found.mask)

    def indices_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of row ids among these rows."""
        return np.searchsorted(self.rows.ids_N, ids)


class PairFeed:
    """A `Feed` of what `StageObjective` takes; neighbours that are missing are blank, without text, and masked."""

    def __init__(
        self,
        examples: PairRows,
        candidates: PairRows,
        neighbors: NeighborSource,
        database: Database,
        identity: Mapping[str, str],
    ) -> None:
        self.identity = identity
        self._examples, self._candidates, self._neighbors, self._database = examples, candidates, neighbors, database

    @property
    def num_examples(self) -> int:
        """Examples of the train set."""
        return len(self._examples.rows)

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """Pictures and captions."""
        tokens_BLD, mask_BL = self._examples.tokens(indices_B)
        return {"pixels_BHWC": self._examples.pixels(indices_B), "tokens_BLD": tokens_BLD, "text_mask_BL": mask_BL}

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """From the source of neighbours."""
        return self._neighbors.ids(indices_N)

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        """Adds the neighbours' pictures and captions."""
        mask_BK = ids_BK != PAD_ID
        # A row that is a neighbour of several examples is read once.
        unique, inverse = np.unique(ids_BK[mask_BK], return_inverse=True)
        shape, there = ids_BK.shape, torch.from_numpy(mask_BK)
        indices_M = self._candidates.indices_of(unique)
        if not len(indices_M):
            indices_M = np.zeros(1, dtype=np.int64)
        place_BK = np.zeros(shape, dtype=np.int64)
        place_BK[mask_BK] = inverse
        places = torch.from_numpy(place_BK.reshape(-1))
        pixels = self._candidates.pixels(indices_M)[places].unflatten(0, shape)
        tokens_MLD, mask_ML = self._candidates.tokens(indices_M)
        return {
            **batch,
            "neighbor_pixels_BKHWC": pixels * there[..., None, None, None],
            "neighbor_tokens_BKLD": tokens_MLD[places].unflatten(0, shape) * there[..., None, None],
            "neighbor_text_mask_BKL": mask_ML[places].unflatten(0, shape) & there[..., None],
            "neighbors_mask_BK": there,
        }

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """The neighbours' pictures."""
        return neighbor_images(self._database, self.find(indices_B))

    def close(self) -> None:
        """Gives back the database."""
        self._database.close()
