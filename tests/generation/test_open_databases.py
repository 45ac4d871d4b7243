"""One cache of opened databases for whoever asks, so that its limit holds for all of them."""

from typing import Any, cast

from remembrandt.generation.cascade import PairFinder
from remembrandt.generation.contexts import ContextFinder
from remembrandt.generation.databases import OpenDatabases


def test_finders_open_databases_where_they_are_told_to_even_if_none_is_open_yet() -> None:
    given = OpenDatabases(max_bytes=1)
    assert ContextFinder.of_model("rdm-small", given).databases is given
    assert PairFinder(cast(Any, None), given).databases is given
