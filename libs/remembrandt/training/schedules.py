"""Learning rates and EMA decays over a run: pure functions of the step."""

import math

from remembrandt.training.config import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Of optimiser step `step` (from 0) of `steps`: linear warm-up, then constant or cosine."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup) / max(steps - config.warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def ema_decay(step: int, decay: float) -> float:
    """Of step `step`: a young average follows the weights closely, (1 + n) / (10 + n), and never more than `decay`."""
    return min(decay, (1 + step) / (10 + step))
