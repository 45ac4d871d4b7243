"""What a network's states take on each GPU: weights, gradients, optimiser and average, spread as ZeRO spreads them.

Activations are not counted: they grow with the batch, and `activation_checkpointing` makes them small.
"""

from dataclasses import dataclass

from remembrandt.training.config import LoopConfig

GPUS = (1, 8, 64)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of each state in all, before it is spread."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    def per_gpu(self, gpus: int, zero_stage: int) -> int:
        """ZeRO 1 spreads optimiser and average, 2 the gradients as well, 3 the weights as well."""
        spread = (zero_stage >= 3, zero_stage >= 2, zero_stage >= 1, zero_stage >= 1)
        parts = (self.weights, self.gradients, self.optimizer, self.average)
        return sum(-(-part // gpus) if apart else part for part, apart in zip(parts, spread, strict=True))


def state_bytes(parameters: int, loop: LoopConfig) -> StateBytes:
    """States of a network of that many parameters.

    bf16 keeps fp32 masters beside 2-byte weights and gradients; Adam has two moments of 4 bytes. Adafactor keeps sums
    of rows and columns, which are nearly nothing, where nothing is spread; ZeRO's flat buffers have no rows, and there
    it keeps one moment. The average has 4 bytes.
    """
    half = loop.precision == "bf16"
    width = 2 if half else 4
    masters = 4 * parameters if half else 0
    moments = 8 * parameters if loop.optimizer.kind != "adafactor" else 4 * parameters if loop.sharding else 0
    return StateBytes(width * parameters, width * parameters, masters + moments, 4 * parameters)
