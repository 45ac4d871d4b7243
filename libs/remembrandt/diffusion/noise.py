"""Random numbers that depend on a picture's own seed alone: not on its batch, its place in it, or the worker.

Letters in names: B pictures or examples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Seeds = Sequence[int] | NDArray[np.int64]

START = 0
"""Stream of the first noise of a picture."""
STEPS = 1
"""First of the streams of the noise that a stochastic sampler adds: STEPS + i in its step i."""
GUIDANCE = 500_000
"""First of the streams by which guidance is drawn: GUIDANCE + i in step i."""
LOW_RES_NOISE = 900_000
TRAIN_NOISE = 1_000_000
TRAIN_TIMESTEP = 1_000_001
TRAIN_CROP = 1_000_002
TRAIN_DROP_TEXT = 1_000_004
TRAIN_DROP_NEIGHBORS = 1_000_005
TRAIN_LOW_RES_LEVEL = 1_000_006
TRAIN_LOW_RES_NOISE = 1_000_007


def seeded_normal(seeds_B: Seeds, shape: Sequence[int], stream: int = START) -> torch.Tensor:
    """Standard normal float32 (B, *shape): row b is a function of (seeds_B[b], stream)."""
    out = np.empty((len(seeds_B), *shape), dtype=np.float32)
    for row, seed in zip(out, seeds_B, strict=True):
        _generator(seed, stream).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)


def seeded_uniform(seeds_B: Seeds, stream: int) -> torch.Tensor:
    """Uniform float64 (B,) in [0, 1): entry b is a function of (seeds_B[b], stream)."""
    return torch.tensor([_generator(seed, stream).random() for seed in seeds_B], dtype=torch.float64)


def _generator(seed: int, stream: int) -> np.random.Generator:
    """Philox is counter-based: any key gives an independent sequence, without warming up."""
    return np.random.Generator(np.random.Philox(key=[int(seed) % 2**64, stream]))
