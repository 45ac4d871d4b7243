"""What a strategy hands to a model: K conditioning items for each of B pictures.

Letters in names: B pictures, K conditioning items, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.retrieval.searcher import Searcher


@dataclass(frozen=True)
class Conditioning:
    """The set M_D^(k) of P1 Eq. 2, encoded: {φ(y) | y ∈ ξ_k(x, D)} for each picture.

    Attributes:
        embeddings_BKD: raw (not normalised) float32; zeros where `mask_BK` is False.
        ids_BK: int64 row ids; PAD_ID where the item is no row (a text embedding, a given embedding) or is missing.
        scores_BK: float32 search score of the item; NaN where no search found it.
        mask_BK: bool, whether the slot holds an item. A search that finds fewer than K rows leaves slots empty.
    """

    embeddings_BKD: NDArray[np.float32]
    ids_BK: NDArray[np.int64]
    scores_BK: NDArray[np.float32]
    mask_BK: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = self.ids_BK.shape
        assert len(shape) == 2 and self.embeddings_BKD.shape[:2] == self.scores_BK.shape == self.mask_BK.shape == shape

    def __len__(self) -> int:
        return len(self.ids_BK)

    @property
    def num_neighbors(self) -> int:
        """Slots K of each picture, empty ones included."""
        return int(self.ids_BK.shape[1])

    @staticmethod
    def of_hits(searcher: Searcher, hits: Hits) -> "Conditioning":
        """The raw embeddings of found rows; slots that a search left empty stay empty."""
        mask_BK = hits.ids != PAD_ID
        embeddings_BKD = np.zeros((*hits.ids.shape, searcher.dim), dtype=np.float32)
        if mask_BK.any():
            embeddings_BKD[mask_BK] = searcher.embeddings(hits.ids[mask_BK])
        scores_BK = np.where(mask_BK, hits.scores, np.float32(np.nan)).astype(np.float32)
        return Conditioning(embeddings_BKD, hits.ids, scores_BK, mask_BK)

    @staticmethod
    def of_embeddings(embeddings_BKD: NDArray[np.float32]) -> "Conditioning":
        """Items that are no rows, for example text embeddings."""
        shape = embeddings_BKD.shape[:2]
        return Conditioning(
            np.asarray(embeddings_BKD, dtype=np.float32),
            np.full(shape, PAD_ID, dtype=np.int64),
            np.full(shape, np.nan, dtype=np.float32),
            np.ones(shape, dtype=bool),
        )

    @staticmethod
    def side_by_side(parts: "Sequence[Conditioning]") -> "Conditioning":
        """The items of several conditionings of the same B pictures, one after the other."""
        return Conditioning(
            np.concatenate([part.embeddings_BKD for part in parts], axis=1),
            np.concatenate([part.ids_BK for part in parts], axis=1),
            np.concatenate([part.scores_BK for part in parts], axis=1),
            np.concatenate([part.mask_BK for part in parts], axis=1),
        )
