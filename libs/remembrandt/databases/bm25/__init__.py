"""BM25 over the rows of a database version: embedded files, or an Elasticsearch index. Both give the same answers."""

from remembrandt.databases.bm25.config import Bm25Config, Bm25Document, Bm25Info
from remembrandt.databases.bm25.elastic_loader import ElasticsearchLoader, num_shards
from remembrandt.databases.bm25.embedded import build_embedded
from remembrandt.databases.bm25.searcher import Bm25Searcher, open_bm25

__all__ = [
    "Bm25Config",
    "Bm25Document",
    "Bm25Info",
    "Bm25Searcher",
    "ElasticsearchLoader",
    "build_embedded",
    "num_shards",
    "open_bm25",
]
