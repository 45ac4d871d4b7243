"""No row is among its own neighbours, nor is its copy: over whole data sets, with both back ends."""

import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from remembrandt.databases.bm25 import Bm25Document, Bm25Searcher
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.databases.neighbor_search import ExclusionConfig, Identities, NeighborFinder, QueryBatch
from tests.benchmarks.bench_bm25 import texts_of

AT_ONCE = 4096


class Captions:
    """A `RowSearcher` of texts alone."""

    def __init__(self, searcher: Bm25Searcher, num_rows: int) -> None:
        self._searcher, self.num_rows = searcher, num_rows

    def search_bm25(self, texts: Sequence[str], k: int, where: Filter | None = None) -> Hits:
        return self._searcher.search(texts, k, where)

    def search_embeddings(self, queries_BD: ArrayLike, k: int, where: Filter | None = None) -> Hits:
        raise AssertionError("these rows have no embeddings")

    def embeddings(self, ids: ArrayLike) -> NDArray[np.float32]:
        raise AssertionError("these rows have no embeddings")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.elasticsearch
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("corpus", ["emoji", "taxon"])
@pytest.mark.parametrize("backend", ["embed", "load"])
def test_no_row_is_among_its_own_neighbours(
    request: pytest.FixtureRequest,
    backend: str,
    corpus: str,
    as_documents: Callable[[Sequence[str]], list[Bm25Document]],
    tmp_path: Path,
) -> None:
    texts = list(islice(texts_of(Path(os.environ.get("DEMO_DIR") or tmp_path) / "data", corpus), 100_000))
    searcher = request.getfixturevalue(backend)(as_documents(texts))
    rows_N = np.arange(len(texts), dtype=np.uint64)
    contents_N = np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts], np.uint64)
    identities = Identities(np.stack([rows_N, rows_N, contents_N], axis=1))
    finder = NeighborFinder(Captions(searcher, len(texts)), identities, 2, ExclusionConfig(same_group=False))
    found = 0
    for first in range(0, len(texts), AT_ONCE):
        own = slice(first, first + AT_ONCE)
        hits = finder.by_bm25(QueryBatch(Identities(identities.hashes_N3[own]), texts[own], None))
        there_BK = hits.ids != PAD_ID
        assert (hits.ids != np.arange(len(texts))[own, None]).all(), "a row is its own neighbour"
        copies_BK = contents_N[np.maximum(hits.ids, 0)] == contents_N[own, None]
        assert not (copies_BK & there_BK).any(), "a copy is a neighbour"
        found += int(there_BK.sum())
    assert found > 1.9 * len(texts), f"{corpus} with {backend}: most rows have two neighbours"
