"""What a strategy needs of a database, whether it is open in this process or behind a pool of actors.

Letters in names: B queries, K results, N rows, D embedding.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from remembrandt.databases.hits import Filter, Hits, Where


class Searcher(Protocol):
    """One pinned database version that answers searches. `Database` and `RetrievalPool` are two."""

    @property
    def num_rows(self) -> int:
        """Number of rows N; ids run from 0 to N - 1."""

    @property
    def dim(self) -> int:
        """Embedding size D."""

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        """The `k` rows of highest cosine similarity; queries of any norm."""

    def search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Hits:
        """The `k` rows of highest BM25 score."""

    def select(self, where: Filter | None = None) -> NDArray[np.int64]:
        """Ids of the rows that a filter allows, in order; None: of all."""

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Raw embeddings (N, D) of rows, in the order asked."""

    def proposal(self) -> NDArray[np.float64]:
        """p_D (N,), the probability of each row (P1 Eq. 5)."""
