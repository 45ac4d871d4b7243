"""What a first stage is fed with: pictures.

Letters in names: B examples, S edge.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.models.objective import Tensors
from remembrandt.training.feeds.cache import ExampleCache
from remembrandt.training.feeds.train_set import TrainSet


class FirstStageFeed:
    """A `Feed` of `pixels_BHWC` (uint8), decoded on the way or from a cache."""

    def __init__(
        self, train_set: TrainSet, size: int, cached: ExampleCache | None, identity: Mapping[str, str]
    ) -> None:
        self.identity = identity
        self._train_set, self._size, self._cached = train_set, size, cached

    @property
    def num_examples(self) -> int:
        """Examples of the train set."""
        return len(self._train_set)

    def read(self, indices_B: NDArray[np.int64]) -> Tensors:
        """Square pictures."""
        if self._cached is not None:
            return {"pixels_BHWC": self._cached.take(indices_B)}
        return {"pixels_BHWC": torch.from_numpy(self._train_set.pixels(indices_B, self._size))}

    def find(self, indices_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """There are no neighbours: (N, 0)."""
        return np.empty((len(indices_N), 0), np.int64)

    def join(self, batch: Tensors, ids_BK: NDArray[np.int64]) -> Tensors:
        """The batch as it is."""
        return batch

    def neighbor_images(self, indices_B: NDArray[np.int64]) -> list[list[Image.Image]]:
        """The originals, to be seen beside their reconstructions."""
        return [[Image.fromarray(picture)] for picture in self._train_set.pixels(indices_B, self._size)]

    def close(self) -> None:
        """Nothing is held."""
