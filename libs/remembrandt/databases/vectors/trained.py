"""The trained, empty index that all shards share, and the shards that hold rows.

One file holds what training produced: the pre-transform, the centroids, the code books. A shard's file holds inverted
lists and code books without the centroids, so that a thousand shards do not carry a thousand copies of them.
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.vectors.runtime import import_faiss
from remembrandt.errors import CorruptionError, StorageError


class TrainedIndex:
    """What training produced, taken apart.

    Attributes:
        transforms: pre-transforms, in order of application.
        index: the empty index behind them.
        ivf: the same, if it has inverted lists, else None.
        quantizer: the index over its centroids, else None.
    """

    def __init__(self, whole: Any) -> None:
        faiss = import_faiss()
        self._whole = whole
        self.transforms: list[Any] = []
        self.index = self._whole
        if isinstance(self._whole, faiss.IndexPreTransform):
            chain = self._whole.chain
            self.transforms = [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
            self.index = faiss.downcast_index(self._whole.index)
        self.ivf = self.index if isinstance(self.index, faiss.IndexIVF) else None
        self.quantizer = faiss.downcast_index(self.ivf.quantizer) if self.ivf is not None else None

    @classmethod
    def load(cls, path: Path) -> "TrainedIndex":
        """Reads what `train_index` wrote.

        Raises:
            CorruptionError: missing or unreadable.
        """
        return cls(read_index(path))

    def transform(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Applies the pre-transforms."""
        for transform in self.transforms:
            vectors_ND = transform.apply(vectors_ND)
        return vectors_ND

    def fits(self, shard: Any) -> bool:
        """Whether a shard's index can have come from this one."""
        if type(shard) is not type(self.index) or shard.d != self.index.d:
            return False
        return self.ivf is None or bool(shard.nlist == self.ivf.nlist)

    def write_trained(self, target: Path) -> None:
        """Writes the empty index."""
        self._whole.is_trained = True
        write_index(self._whole, target)

    def write_shard(self, target: Path) -> None:
        """Writes the rows that were added, without pre-transform and centroids."""
        if self.ivf is None:
            write_index(self.index, target)
            return
        centroids, empty = self.ivf.quantizer, import_faiss().IndexFlatIP(self.ivf.d)
        self.ivf.quantizer = empty
        try:
            write_index(self.ivf, target)
        finally:
            self.ivf.quantizer = centroids


def read_index(path: Path, flags: int = 0) -> Any:
    """Reads a FAISS file.

    Raises:
        CorruptionError: missing, truncated, or not a FAISS index.
    """
    try:
        return import_faiss().read_index(str(path), flags)
    except RuntimeError as error:
        message = f"{path} is not a readable FAISS index ({_reason(error)}): restore it or rebuild"
        raise CorruptionError(message) from None


def write_index(index: Any, target: Path) -> None:
    """Writes a FAISS file under a temporary name, then moves it into place.

    Raises:
        StorageError: no space, no permission, no such folder.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        import_faiss().write_index(index, str(temporary))
        os.replace(temporary, target)
    except (RuntimeError, OSError) as error:
        raise StorageError(f"cannot write {target} ({_reason(error)}): check space and permissions") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _reason(error: Exception) -> str:
    """The last clause of a FAISS error, without its source position, on one line."""
    text = " ".join(str(error).split())
    return text.rsplit("Error: ", 1)[-1][:160]
