"""Databases as tenants build them: of few rows, and without a train set."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from remembrandt.retrieval import parse_strategy
from remembrandt.retrieval.proposal import ProposalTable, pseudo_query_uniforms
from remembrandt.serving.retrieval import ServedDatabase, fitted
from tests.databases.test_catalog import manifest


def database(rows: int) -> Any:
    opened = object.__new__(ServedDatabase)
    opened.manifest = manifest("one", rows=rows)
    return opened


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"name": "neighbors", "num_neighbors": 4}, {"num_neighbors": 3}),
        ({"name": "neighbors", "num_neighbors": 2}, {"num_neighbors": 2}),
        ({"name": "image", "num_neighbors": 16}, {"num_neighbors": 3}),
        ({"name": "text_and_neighbors", "num_neighbors": 4}, {"num_neighbors": 4}),
        ({"name": "text_and_neighbors", "num_neighbors": 8}, {"num_neighbors": 4}),
        ({"name": "class_pool", "num_neighbors": 4, "pool_size": 20}, {"num_neighbors": 3, "pool_size": 3}),
        ({"name": "class_pool", "num_neighbors": 2, "pool_size": 20}, {"num_neighbors": 2, "pool_size": 3}),
        ({"name": "pseudo_query", "num_neighbors": 4, "top_m": 0.1}, {"num_neighbors": 3, "top_m": 1.0}),
        ({"name": "text"}, {}),
        ({"name": "exemplars", "ids": [0, 1, 2, 0]}, {"ids": [0, 1, 2, 0]}),
    ],
    ids=str,
)
def test_no_more_neighbours_are_asked_for_than_there_are_rows(asked: dict[str, Any], wanted: dict[str, Any]) -> None:
    strategy: Any = parse_strategy(asked)
    found = fitted(strategy, database(3))
    assert found == parse_strategy({"name": asked["name"], **wanted})


def test_without_a_train_set_every_row_is_equally_likely() -> None:
    table = ProposalTable.of(database(50).proposal())
    drawn = table.draw(pseudo_query_uniforms(range(2000)))
    assert set(drawn.tolist()) == set(range(50))
    assert np.bincount(drawn).max() < 100


def test_a_train_set_says_how_likely_rows_are() -> None:
    strategy: Any = parse_strategy({"name": "pseudo_query", "num_neighbors": 4, "top_m": 0.1})
    built = SimpleNamespace(num_rows=100, manifest=SimpleNamespace(neighbors=object()))
    assert fitted(strategy, built) == strategy  # type: ignore[arg-type]
