"""The train set X: rows of a database version, so that its images are decoded, embedded and checked already.

Letters in names: B examples, S edge, N examples in all, D embedding.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.decode import DecodeConfig, decode_image, to_square
from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter
from remembrandt.databases.manifest import digest, encode_document
from remembrandt.errors import SourceError

_DECODERS = 2


class RowsConfig(Config):
    """Rows of a database version.

    Attributes:
        uri: `<root>/<name>`; `version` None: the live one, found when the run starts.
        where: column → allowed values (`licence`, `group`, the source's own fields); empty takes every row.
    """

    uri: str
    version: str | None = None
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def filter(self) -> Filter | None:
        """`where` for a search."""
        return Filter(equals=self.where) or None


class TrainSet:
    """Examples by index 0 … N - 1, in the order of the rows. Thread-safe. Use `TrainSet.open`.

    Attributes:
        ids_N: row id of each example.
    """

    def __init__(self, database: Database, ids_N: NDArray[np.int64], identity: str) -> None:
        self.database, self.ids_N, self.identity = database, ids_N, identity

    @classmethod
    def open(cls, config: RowsConfig) -> Self:
        """Opens a version and finds its examples.

        Raises:
            VersionError: no such database or version.
            SearchError: a column that does not exist.
            SourceError: no row is left.
        """
        database = Database.open(config.uri, version=config.version)
        ids_N = database.select(config.filter)
        if not len(ids_N):
            raise SourceError(f"no row of {config.uri} has {describe(config.where)}: change train_set.where")
        parts = [digest(encode_document(database.manifest)), *map(str, sorted(config.where.items()))]
        return cls(database, ids_N, digest("\n".join(parts).encode())[:16])

    def __len__(self) -> int:
        return len(self.ids_N)

    def images(self, indices_B: NDArray[np.int64]) -> list[Image.Image]:
        """Decoded RGB images."""
        rows = self.database.rows(self.ids_N[indices_B], ["key", "image"])
        if missing := [row.key for row in rows if row.image is None]:
            raise SourceError(f"row '{missing[0]}' of '{self.database.name}' has no image: leave it out by `where`")
        return list(self._threads.map(lambda row: decode_image(row.image or b"", DecodeConfig()), rows))

    def pixels(self, indices_B: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Images cut to a square and resized: (B, S, S, 3)."""
        return np.stack([np.asarray(to_square(image, size)) for image in self.images(indices_B)])

    def embeddings(self, indices_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """φ(x), raw, (B, D): what their neighbours are searched by."""
        return self.database.embeddings(self.ids_N[indices_B])

    def captions(self, indices_B: NDArray[np.int64]) -> list[str]:
        """The examples' captions."""
        return [row.caption for row in self.database.rows(self.ids_N[indices_B], ["caption"])]

    def column(self, name: str) -> list[str]:
        """A column of text of all N examples.

        Raises:
            SearchError: there is none of that name.
        """
        self.database.rows([0], [name])
        values = self.database.dataset.to_table(columns=[name]).column(name)
        return values.take(pa.array(self.ids_N)).to_pylist()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")


def describe(where: Mapping[str, tuple[str, ...]]) -> str:
    """A filter for a message: `style=noto|twemoji, split=train`."""
    return ", ".join(f"{column}={'|'.join(values)}" for column, values in where.items()) or "anything"
