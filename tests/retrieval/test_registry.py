"""Strategies by name, as a request or a command line gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from remembrandt.errors import ConfigError, SearchError
from remembrandt.retrieval import STRATEGIES, Queries, StrategyConfig, encode_queries, parse_strategy, strategies

ROWS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


class LengthEncoder:
    """Embeds a text by its length and an image by its size, so that a test can tell what was encoded."""

    class_prompt = "a drawing of {}"

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray([[len(text), 1, 0, 0] for text in texts], dtype=np.float32)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.asarray([[*image.size, 0, 1] for image in images], dtype=np.float32)


@pytest.fixture
def searcher(exact_searcher: Any) -> Any:
    return exact_searcher(ROWS, np.full(30, 1 / 30), texts=[f"word{n % 5} w{n}" for n in range(30)])


def ask(searcher: Any, value: Any, **given: Any) -> Any:
    strategy = parse_strategy(value)
    return strategy.condition(searcher, encode_queries(strategy, LengthEncoder(), **given))


def test_every_strategy_can_be_named_and_answers(searcher: Any) -> None:
    values: dict[str, Any] = {"exemplars": {"name": "exemplars", "ids": [1, 2]}}
    for name in STRATEGIES:
        pictures = [Image.new("RGB", (3, 5))] * 2
        found = ask(searcher, values.get(name, name), seeds=[1, 2], texts=["fox", "owl"], images=pictures)
        assert len(found) == 2 and found.mask_BK.all(), name


def test_a_name_with_settings_does_what_the_function_does(searcher: Any) -> None:
    encoder = LengthEncoder()
    found = ask(
        searcher, {"name": "class_pool", "num_neighbors": 2, "pool_size": 9}, seeds=[5, 6], texts=["fox", "barn owl"]
    )
    prompts = encoder.encode_texts(["a drawing of fox", "a drawing of barn owl"])
    np.testing.assert_array_equal(found.ids_BK, strategies.class_pool(searcher, prompts, [5, 6], 2, 9).ids_BK)
    found = ask(searcher, {"name": "pseudo_query", "top_m": 0.1, "num_neighbors": 3}, seeds=[5, 6])
    np.testing.assert_array_equal(found.ids_BK, strategies.pseudo_query(searcher, [5, 6], 3, 0.1).ids_BK)


def test_neighbors_by_bm25_needs_no_encoder(searcher: Any) -> None:
    strategy = parse_strategy({"name": "neighbors", "similarity": "bm25", "num_neighbors": 3})
    found = strategy.condition(searcher, encode_queries(strategy, None, seeds=[0], texts=["word2"]))
    assert found.ids_BK.tolist() == [[2, 7, 12]]


def test_exemplars_are_the_same_for_every_picture(searcher: Any) -> None:
    found = ask(searcher, {"name": "exemplars", "ids": [4], "embeddings": [[1, 2, 3, 4]]}, seeds=[1, 2, 3])
    assert found.ids_BK.tolist() == [[4, -1]] * 3
    np.testing.assert_array_equal(found.embeddings_BKD[2], [ROWS[4], [1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("neighbours", "unknown strategy 'neighbours': did you mean 'neighbors'"),
        ({"name": "image", "num_neighbours": 4}, "did you mean 'num_neighbors'"),
        ({"name": "image", "num_neighbors": 0}, "num_neighbors"),
        ({"name": "pseudo_query", "top_m": 1.5}, "top_m"),
        ({"name": "class_pool", "num_neighbors": 4, "pool_size": 3}, "must not be below"),
        ({"name": "exemplars"}, "need `ids` or `embeddings`"),
        ({"name": "exemplars", "ids": [-1]}, "row ids from 0"),
        ({"name": "exemplars", "embeddings": [[1.0], [1.0, 2.0]]}, "same size"),
        ({"num_neighbors": 4}, "a strategy needs a name"),
    ],
)
def test_a_mistake_is_named_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_strategy(value)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_queries_that_are_missing_are_asked_for(searcher: Any) -> None:
    with pytest.raises(SearchError, match="needs an image for each picture: got 0 for 1"):
        encode_queries(parse_strategy("image"), LengthEncoder(), seeds=[1])
    with pytest.raises(SearchError, match="needs a class name for each picture: got 1 for 2"):
        encode_queries(parse_strategy("class_pool"), LengthEncoder(), seeds=[1, 2], texts=["fox"])
    with pytest.raises(SearchError, match="needs an encoder"):
        encode_queries(parse_strategy("text"), None, seeds=[1], texts=["fox"])
    with pytest.raises(SearchError, match="needs the embedding of each query"):
        parse_strategy("image").condition(searcher, Queries((1,)))


def test_a_strategy_can_be_a_field_of_another_configuration() -> None:
    strategy: Any = TypeAdapter(StrategyConfig).validate_python({"name": "pseudo_query", "top_m": 0.2})
    assert strategy == parse_strategy({"name": "pseudo_query", "top_m": 0.2})
