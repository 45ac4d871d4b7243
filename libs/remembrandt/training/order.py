"""In which order examples are seen: a pure function of seed, epoch and position, for any number of workers.

Letters in names: B examples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Order:
    """Every epoch is a permutation of its own. It is computed, not stored, so that 10⁹ examples need no memory.

    The permutation is a Feistel network over the next power of four; values beyond the end are permuted again until
    they fall below it (cycle walking).
    """

    num_examples: int
    seed: int

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Indices (B,) of the whole batch of optimiser step `step`; epochs follow one another without a gap."""
        positions = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        epochs, places = np.divmod(positions, self.num_examples)
        indices = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permute(places[here], int(epoch))
        return indices

    def seeds(self, step: int, size: int) -> NDArray[np.int64]:
        """One seed (B,) for each place of the batch: what an example draws is new in every epoch."""
        positions = np.arange(step * size, (step + 1) * size, dtype=np.uint64)
        mixed = _mix(positions ^ _mix(np.full(size, self.seed % 2**64, dtype=np.uint64)))
        return (mixed >> np.uint64(1)).astype(np.int64)

    def _permute(self, places: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        half = max(1, ((self.num_examples - 1).bit_length() + 1) // 2)
        base = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
        keys = [_mix(_mix(base[:1]) ^ _mix(base[1:] + np.uint64(1)) ^ np.uint64(i))[0] for i in range(_ROUNDS)]
        values = places.astype(np.uint64)
        outside = np.ones(len(values), dtype=bool)
        while outside.any():
            values[outside] = _feistel(values[outside], half, keys)
            outside = values >= self.num_examples
        return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64."""
    with np.errstate(over="ignore"):
        z = values + _MIX
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
