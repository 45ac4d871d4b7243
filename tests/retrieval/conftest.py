"""What several tests of retrieval need."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from tests.support.exact_searcher import ExactSearcher


@pytest.fixture(scope="session")
def exact_searcher() -> type[ExactSearcher]:
    return ExactSearcher


@pytest.fixture(scope="session")
def sharded_database(
    emoji_like_database: str, build_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Gives the drawings, indexed another way, as a published database (nothing is embedded anew): its URI."""

    def derive(**vectors: Any) -> str:
        uri = tmp_path_factory.mktemp("sharded") / "drawings"
        shutil.copytree(emoji_like_database, uri)
        gate = {"recall_floor": 0.0, "recall_at": 10, "queries": 50}
        values = {**build_values, "uri": str(uri), "source": None, "base": "current", "vectors": vectors, "gate": gate}
        build_database(parse_config(BuildConfig, values, "test"))
        return str(uri)

    return derive
