"""Forward passes of one fixed shape, halved when memory runs out.

Matrix kernels choose their blocking, and with it the order of their sums, by the shape of the batch. So every forward
pass has the same number of rows, the last one padded: a row's embedding does not depend on its neighbours.

Shapes: N rows, B rows of one forward pass, D embedding.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from remembrandt.errors import ServiceError
from remembrandt.progress import say

_CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


class FixedBatches:
    """Runs `forward` over any number of rows in batches of `size` rows.

    Attributes:
        size: rows of one forward pass; it only ever shrinks.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], size: int, device: torch.device) -> None:
        self._forward, self.size, self._device = forward, size, device

    def __call__(self, rows: torch.Tensor, dim: int) -> NDArray[np.float32]:
        """Rows (N, …) → embeddings (N, D) float32.

        Raises:
            ServiceError: not even one row fits into memory.
        """
        out_ND = np.empty((len(rows), dim), dtype=np.float32)
        start = 0
        while start < len(rows):
            size = self.size
            batch = rows[start : start + size]
            embeddings_BD = self._try(_pad(batch, size))
            if embeddings_BD is None:
                self._halve()
                continue
            out_ND[start : start + len(batch)] = embeddings_BD[: len(batch)]
            start += len(batch)
        return out_ND

    def _try(self, batch: torch.Tensor) -> NDArray[np.float32] | None:
        """Embeddings of one full batch, or None if memory ran out."""
        try:
            with torch.inference_mode():
                return self._forward(batch.to(self._device)).float().cpu().numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _halve(self) -> None:
        """The failed pass has returned, so its tensors are gone and the cache can give their memory back."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self.size == 1:
            raise ServiceError(
                f"out of memory on {self._device} with a single row: free memory there, or use a smaller model"
            )
        self.size //= 2
        say(f"out of memory on {self._device}: going on with batches of {self.size}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in _CPU_ALLOCATOR)


def _pad(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Repeats the first row up to `size` rows: real values, so that no kernel meets NaN or denormals."""
    missing = size - len(batch)
    if missing == 0:
        return batch
    return torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])
