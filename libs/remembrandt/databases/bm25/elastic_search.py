"""Search in Elasticsearch: queries travel in batches, several batches at a time."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from remembrandt.configuration import nearest
from remembrandt.databases.bm25.config import Bm25Config, Bm25Info
from remembrandt.databases.bm25.elastic_client import BUSY, BusyError, Cluster
from remembrandt.databases.bm25.queries import MAX_QUERY_TERMS, count_terms, limited
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.errors import SearchError, ServiceError

MAX_K = 10_000
"""Elasticsearch's `index.max_result_window`."""

_TERMS_PER_CLAUSE = 65_536
_OWN_FIELDS = ("key", "group", "licence")
_DEFAULT_THREADS = 4
_WANTED = ["responses.status", "responses.hits.hits.sort", "responses.error", "responses._shards.failed"]


class ElasticsearchSearcher:
    """Answers from the index of one database version, whatever the alias points at by now. Threads may share one."""

    def __init__(self, info: Bm25Info, config: Bm25Config) -> None:
        assert info.index is not None, "an Elasticsearch index has a name"
        self.index = info.index
        self._fields = tuple(info.fields)
        # Several shards must first agree on how rare a term is; one shard knows.
        self._search_type = "query_then_fetch" if info.settings.get("shards") == 1 else "dfs_query_then_fetch"
        self._config = config
        threads = config.search_threads
        self._threads = _DEFAULT_THREADS if threads == "auto" else int(threads)
        self._cluster = Cluster(config, connections=self._threads)
        self._cluster.ping()
        exists = self._cluster.call(
            f"looking for index {self.index}", lambda: self._cluster.client.indices.exists(index=self.index)
        )
        if not exists:
            raise ServiceError(
                f"Elasticsearch at {self._cluster.url} has no index {self.index}: build the version anew"
            )
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="msearch")

    def search(self, texts: Sequence[str], k: int, where: Filter | None = None) -> Hits:
        """See `Bm25Searcher.search`."""
        if not 1 <= k <= MAX_K:
            raise SearchError(f"k must be from 1 to {MAX_K:,} on Elasticsearch, not {k}")
        clauses = self._clauses(where) if where else {}
        step = self._config.search_batch
        pieces = [texts[start : start + step] for start in range(0, len(texts), step)]
        run = map if len(pieces) < 2 else self._pool.map
        answers = list(run(lambda piece: self._search_piece(piece, k, clauses), pieces))
        if not answers:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Hits(np.concatenate([a.ids for a in answers]), np.concatenate([a.scores for a in answers]))

    def close(self) -> None:
        """Closes all connections."""
        self._pool.shutdown()
        self._cluster.close()

    def _search_piece(self, texts: Sequence[str], k: int, clauses: Mapping[str, Any]) -> Hits:
        lines: list[Mapping[str, Any]] = []
        for text in texts:
            lines += [{}, _query(text, k, clauses)]

        def send() -> Sequence[Mapping[str, Any]]:
            answer = self._cluster.client.msearch(
                index=self.index, searches=lines, search_type=self._search_type, filter_path=_WANTED
            )
            responses: Sequence[Mapping[str, Any]] = answer["responses"]
            self._check(responses)
            return responses

        responses = self._cluster.call(f"searching index {self.index}", send)
        ids = np.full((len(texts), k), PAD_ID, np.int64)
        scores = np.full((len(texts), k), -np.inf, np.float32)
        for position, response in enumerate(responses):
            for place, hit in enumerate(response.get("hits", {}).get("hits", ())):
                scores[position, place], ids[position, place] = hit["sort"]
        return Hits(ids, scores)

    def _check(self, responses: Sequence[Mapping[str, Any]]) -> None:
        for response in responses:
            if response["status"] in BUSY or response.get("_shards", {}).get("failed"):
                raise BusyError("a shard did not answer")
            if response["status"] >= 400:
                cause = (response["error"].get("root_cause") or [response["error"]])[0]
                raise ServiceError(
                    f"Elasticsearch at {self._cluster.url} failed to search index {self.index}: "
                    + " ".join(str(cause.get("reason", cause.get("type"))).split())[:300]
                )

    def _clauses(self, where: Filter) -> dict[str, Any]:
        must = [{"terms": {self._field(name): list(values)}} for name, values in where.equals.items()]
        excluded = (("row", where.exclude_ids), ("group", where.exclude_groups), ("key", where.exclude_keys))
        must_not = [
            {"terms": {name: list(values[start : start + _TERMS_PER_CLAUSE])}}
            for name, values in excluded
            for start in range(0, len(values), _TERMS_PER_CLAUSE)
        ]
        return {"filter": must, "must_not": must_not}

    def _field(self, name: str) -> str:
        if name in _OWN_FIELDS:
            return name
        if name not in self._fields:
            raise SearchError(f"unknown filter field '{name}': {nearest(name, [*_OWN_FIELDS, *self._fields])}")
        return f"fields.{name}"


def _query(text: str, k: int, clauses: Mapping[str, Any]) -> dict[str, Any]:
    """One search; ties in score are ordered by row. The cluster analyses the text, unless it is too long to be sent."""
    terms = count_terms(text) if len(text) > MAX_QUERY_TERMS else {}
    if sum(terms.values()) > MAX_QUERY_TERMS:
        weighted = [{"term": {"text": {"value": t, "boost": count}}} for t, count in limited(terms).items()]
        match: dict[str, Any] = {"bool": {"should": weighted}}
    else:
        match = {"match": {"text": {"query": text}}}
    query = {"bool": {"must": [match], **clauses}} if clauses else match
    return {
        "query": query,
        "size": k,
        "sort": ["_score", {"row": "asc"}],
        "_source": False,
        "stored_fields": "_none_",
        "track_total_hits": False,
    }
