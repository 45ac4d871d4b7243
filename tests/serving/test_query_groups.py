"""Queries of many clients in one call: those that cannot be searched together are not."""

from typing import Any, cast

import numpy as np

from remembrandt.databases.hits import Hits
from remembrandt.errors import SearchError
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.requests import DatabaseRef
from remembrandt.serving.config import parse_service
from remembrandt.serving.retrieval import Query, Retrieval, Rows

MODELS = {"rdm-small": {"kind": "rdm", "model": "rdm-small"}}


class ThreeDimensions:
    """Ten rows without anything in them; as a `Database`, it refuses embeddings of another size."""

    name, version, num_rows = "small", "v1", 10

    def search_embeddings(self, queries_BD: np.ndarray, k: int, where: Any = None) -> Hits:
        if queries_BD.shape[1] != 3:
            raise SearchError(f"queries have {queries_BD.shape[1]} dimensions, and database 'small' has 3")
        return Hits(np.full((len(queries_BD), k), -1), np.full((len(queries_BD), k), -np.inf, np.float32))


def test_an_embedding_of_another_length_is_the_mistake_of_its_own_query() -> None:
    retrieval = Retrieval(parse_service({"accounts": "sqlite://", "storage": "unused", "models": MODELS}))
    retrieval._databases = OpenDatabases(lambda ref: cast(Any, ThreeDimensions()))
    ref = DatabaseRef(uri="unused/small", version="v1")
    vectors = [(1.0, 0.0, 0.0), (1.0, 0.0), (0.0, 1.0, 0.0), (1.0,)]
    found = retrieval.search([Query(ref, 2, embedding=vector) for vector in vectors])
    assert [type(own) for own in found] == [Rows, SearchError, Rows, SearchError]
