"""One way to ask, whatever backend answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from remembrandt.databases.bm25.config import Bm25Config, Bm25Info
from remembrandt.databases.bm25.elastic_search import ElasticsearchSearcher
from remembrandt.databases.bm25.embedded_search import EmbeddedSearcher
from remembrandt.databases.hits import Filter, Hits
from remembrandt.errors import SearchError


class Bm25Searcher(Protocol):
    """Text search over the rows of one database version."""

    def search(self, texts: Sequence[str], k: int, where: Filter | None = None) -> Hits:
        """The `k` best rows of each text that share at least one term with it, by BM25, then by id.

        Raises:
            SearchError: k below 1 or too large for the backend, or a filter on an unknown column.
            ServiceError: the search service is down or refuses.
        """

    def close(self) -> None:
        """Gives back files or connections."""


def open_bm25(info: Bm25Info, folder: Path | None, url: str | None, config: Bm25Config | None = None) -> Bm25Searcher:
    """Opens the index that `info` describes.

    Args:
        folder: local folder of the embedded index.
        url: address of Elasticsearch; default: the configuration's, else ELASTICSEARCH_URL.
        config: credentials, threads and time limits; defaults (and the environment's credentials) if None.

    Raises:
        SearchError: the backend is unknown here.
        CorruptionError: the embedded index lacks files or contradicts itself.
        ServiceError: Elasticsearch cannot be reached, or no longer has the index.
    """
    config = config or Bm25Config()
    if info.backend == "embedded":
        assert folder is not None, "the embedded index needs its folder"
        return EmbeddedSearcher(folder, config)
    if info.backend == "elasticsearch":
        return ElasticsearchSearcher(info, config.model_copy(update={"url": url}) if url else config)
    raise SearchError(f"BM25 backend '{info.backend}' is unknown here: upgrade remembrandt, or build the version anew")
