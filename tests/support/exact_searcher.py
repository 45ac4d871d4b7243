"""A searcher that is obviously right: every score computed, every row sorted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from remembrandt.databases.hits import PAD_ID, Filter, Hits, Where, search_each
from remembrandt.errors import SearchError


def _unit(rows_ND: NDArray[Any]) -> NDArray[np.float64]:
    """In double precision: beside a multiple of 2⁻¹⁰, how float32 was summed up would decide to which it is rounded."""
    wide_ND = rows_ND.astype(np.float64)
    return wide_ND / np.maximum(np.linalg.norm(wide_ND, axis=1, keepdims=True), 1e-12)


class ExactSearcher:
    """Rows in memory, with their own number as a column `row`.

    Scores are rounded to multiples of 2⁻¹⁰, so that ties occur, and are settled by row id.
    """

    def __init__(
        self,
        embeddings_ND: NDArray[np.float32],
        proposal_N: NDArray[np.float64] | None = None,
        texts: Sequence[str] = (),
    ) -> None:
        self._embeddings_ND, self._proposal_N, self._texts = embeddings_ND, proposal_N, texts
        self.proposal_calls = 0

    @property
    def num_rows(self) -> int:
        return len(self._embeddings_ND)

    @property
    def dim(self) -> int:
        return int(self._embeddings_ND.shape[1])

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Where = None) -> Hits:
        if not isinstance(where, Filter | None):
            queries = np.asarray(queries_BD)
            return search_each(where, k, lambda places, own: self.search_embeddings(queries[places], k, own))
        if not 1 <= k <= self.num_rows:
            raise SearchError(f"k = {k}")
        scores_BN = np.round(_unit(np.asarray(queries_BD)) @ _unit(self._embeddings_ND).T * 1024) / 1024
        return self._sorted(scores_BN, k, where)

    def search_bm25(self, texts: Sequence[str], k: int, where: Where = None) -> Hits:
        assert isinstance(where, Filter | None)
        words = [set(text.split()) for text in self._texts]
        scores_BN = np.asarray([[len(set(text.split()) & own) or -np.inf for own in words] for text in texts])
        return self._sorted(scores_BN, k, where)

    def select(self, where: Filter | None = None) -> NDArray[np.int64]:
        allowed = set(where.equals["row"]) if where else None
        return np.array([n for n in range(self.num_rows) if allowed is None or str(n) in allowed], dtype=np.int64)

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]:
        chosen = np.asarray(ids, dtype=np.int64)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < self.num_rows):
            raise SearchError("there is no such row")
        return self._embeddings_ND[chosen]

    def proposal(self) -> NDArray[np.float64]:
        self.proposal_calls += 1
        if self._proposal_N is None:
            raise SearchError("no proposal")
        return self._proposal_N

    def _sorted(self, scores_BN: NDArray[Any], k: int, where: Filter | None) -> Hits:
        ids, scores = np.full((len(scores_BN), k), PAD_ID, np.int64), np.full((len(scores_BN), k), -np.inf, np.float32)
        for b, row in enumerate(scores_BN):
            excluded = set(where.exclude_ids) if where else set()
            allowed = set(self.select(where if where and where.equals else None).tolist()) - excluded
            ranked = sorted((-score, n) for n, score in enumerate(row) if n in allowed and np.isfinite(score))
            for place, (negative, n) in enumerate(ranked[:k]):
                ids[b, place], scores[b, place] = n, -negative
        return Hits(ids, scores)
