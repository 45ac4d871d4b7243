"""Fills one Elasticsearch index with the rows of one database version."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from elasticsearch import BadRequestError, NotFoundError

from remembrandt.databases.bm25.analysis import ANALYZER
from remembrandt.databases.bm25.config import Bm25Config, Bm25Document, Bm25Info
from remembrandt.databases.bm25.elastic_client import BUSY, BusyError, Cluster
from remembrandt.databases.bm25.similarity import K1, B
from remembrandt.errors import ServiceError

ROWS_PER_SHARD = 50_000_000
"""Target size of a shard. A caption of 50 words takes about 400 bytes of index, so that a shard stays near 20 GB;
Elastic advises 10 to 50 GB and at most 200 million documents."""

MAX_SHARDS = 1024
"""Elasticsearch's own limit for one index."""

_EXISTS = "resource_already_exists_exception"
_CONFLICT = 409


def num_shards(rows: int, rows_per_shard: int = ROWS_PER_SHARD) -> int:
    """Primary shards for an index of `rows` documents: one for each started 50 million.

    10⁶ rows → 1, 10⁸ → 2, 10⁹ → 20.
    """
    return max(1, min(MAX_SHARDS, math.ceil(rows / rows_per_shard)))


def index_body(shards: int) -> dict[str, Any]:
    """Settings and mapping of a new index: the analysis and the score that the embedded index has too.

    While it is loaded nothing is refreshed and nothing copied. Row ids stand in a numeric column as well, to break
    ties; positions in the text are not kept, for no phrase is searched.
    """
    keyword = {"type": "keyword", "doc_values": False}
    return {
        "settings": {
            "number_of_shards": shards,
            "number_of_replicas": 0,
            "refresh_interval": "-1",
            "similarity": {"default": {"type": "BM25", "k1": K1, "b": B}},
            "analysis": {
                "analyzer": {"default": {"type": "custom", "tokenizer": ANALYZER, "filter": ["lowercase"]}},
            },
        },
        "mappings": {
            "dynamic": "strict",
            "dynamic_templates": [{"columns": {"path_match": "fields.*", "mapping": keyword}}],
            "properties": {
                "text": {"type": "text", "index_options": "freqs"},
                "row": {"type": "long"},
                "key": keyword,
                "group": keyword,
                "licence": keyword,
                "fields": {"type": "object", "dynamic": True, "subobjects": False},
            },
        },
    }


class ElasticsearchLoader:
    """Creates, fills, checks, publishes and removes one index. Tasks on any node may write to it at the same time."""

    def __init__(self, config: Bm25Config, index: str) -> None:
        self._config = config
        self.index = index
        self._cluster = Cluster(config, connections=config.bulk_threads)

    def __reduce__(self) -> tuple[type["ElasticsearchLoader"], tuple[Bm25Config, str]]:
        return type(self), (self._config, self.index)

    def ping(self) -> None:
        """Returns if the cluster answers and accepts the credentials; a ServiceError within seconds if not."""
        self._cluster.ping()

    def create(self, rows: int) -> None:
        """Makes the index, sized for `rows` documents, unless it is there from an earlier attempt."""
        self.ping()
        shards = num_shards(rows) if self._config.shards == "auto" else int(self._config.shards)

        def create() -> None:
            try:
                self._cluster.client.indices.create(index=self.index, **index_body(shards))
            except BadRequestError as error:
                if error.error != _EXISTS:
                    raise

        self._cluster.call(f"creating index {self.index}", create)

    def write(self, documents: Iterable[Bm25Document]) -> int:
        """Loads documents under their row ids and returns how many; those that are there already stay as they are.

        A request that is refused (429) or finds no server is repeated with growing pauses; of a refused request only
        the refused documents are.

        Raises:
            ServiceError: the cluster stays away, or refuses a document for good (its row is named).
        """
        written = 0
        limit = 2 * self._config.bulk_threads
        with ThreadPoolExecutor(self._config.bulk_threads, thread_name_prefix="bulk") as pool:
            running: set[Future[int]] = set()
            for chunk in _chunks(documents, self._config.bulk_documents, self._config.bulk_bytes):
                if len(running) >= limit:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    written += sum(future.result() for future in done)
                running.add(pool.submit(self._write_chunk, chunk))
            written += sum(future.result() for future in running)
        return written

    def finish(self, rows: int) -> Bm25Info:
        """Makes the index searchable, gives it its copies, and checks that it holds exactly `rows` documents.

        Raises:
            ServiceError: it does not.
        """
        config, client = self._config, self._cluster.client
        doing = f"finishing index {self.index}"
        if config.force_merge:
            self._cluster.call(doing, lambda: client.indices.forcemerge(index=self.index, max_num_segments=1))
        settings = {"refresh_interval": config.refresh_interval, "number_of_replicas": config.replicas}
        self._cluster.call(doing, lambda: client.indices.put_settings(index=self.index, settings=settings))
        self._cluster.call(doing, lambda: client.indices.refresh(index=self.index))
        count = self._cluster.call(doing, lambda: client.count(index=self.index))["count"]
        if count != rows:
            found = f"holds {count:,} documents instead of {rows:,}"
            raise ServiceError(f"index {self.index} at {self._cluster.url} {found}: delete it, and build again")
        return self._info(rows)

    def move_alias(self, alias: str) -> None:
        """Lets `alias` name this index and no other, in one atomic step; the index it named before stays."""
        client = self._cluster.client
        doing = f"moving alias {alias}"

        def move() -> None:
            try:
                holders = list(client.indices.get_alias(name=alias))
            except NotFoundError:
                holders = []
            actions: list[dict[str, Any]] = [
                {"remove": {"index": holder, "alias": alias}} for holder in holders if holder != self.index
            ]
            client.indices.update_aliases(actions=[*actions, {"add": {"index": self.index, "alias": alias}}])

        self._cluster.call(doing, move)

    def delete(self) -> None:
        """Removes the index, if it is there."""
        client = self._cluster.client
        request = client.options(ignore_status=404).indices.delete
        self._cluster.call(f"deleting index {self.index}", lambda: request(index=self.index))

    def close(self) -> None:
        """Closes all connections."""
        self._cluster.close()

    def _info(self, rows: int) -> Bm25Info:
        client = self._cluster.client
        doing = f"reading index {self.index}"
        body = self._cluster.call(doing, lambda: client.indices.get(index=self.index))[self.index]
        settings = body["settings"]["index"]
        shape = {"shards": int(settings["number_of_shards"]), "replicas": int(settings["number_of_replicas"])}
        fields = tuple(sorted(body["mappings"]["properties"]["fields"].get("properties", {})))
        return Bm25Info("elasticsearch", ANALYZER, K1, B, rows, index=self.index, fields=fields, settings=shape)

    def _write_chunk(self, chunk: Sequence["_Operation"]) -> int:
        pending = list(chunk)

        def send() -> None:
            pending[:] = self._send(pending)
            if pending:
                raise BusyError(f"{len(pending)} documents of a bulk request refused with 429")

        self._cluster.call(f"loading index {self.index}", send)
        return len(chunk)

    def _send(self, operations: Sequence["_Operation"]) -> list["_Operation"]:
        """Sends one bulk request; returns those to be sent again."""
        lines: list[Any] = [line for operation in operations for line in operation]
        response = self._cluster.client.bulk(
            index=self.index, operations=lines, filter_path=["errors", "items.*.status", "items.*.error"]
        )
        if not response["errors"]:
            return []
        refused = []
        for operation, item in zip(operations, response["items"], strict=True):
            status = item["create"]["status"]
            if status in BUSY:
                refused.append(operation)
            elif status >= 400 and status != _CONFLICT:
                raise ServiceError(_refusal(self._cluster.url, self.index, operation, item["create"].get("error", {})))
        return refused


_Operation = tuple[str, str]
"""Two lines of a bulk request: what to do, and the document."""


def _operation(document: Bm25Document) -> _Operation:
    """`create`, not `index`: a document written again would leave a deleted one, which counts in idf until merged."""
    source = {
        "text": document.text,
        "row": document.id,
        "key": document.key,
        "group": document.group,
        "licence": document.licence,
        "fields": dict(document.fields),
    }
    return f'{{"create":{{"_id":"{document.id}"}}}}', _encode(source)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _chunks(documents: Iterable[Bm25Document], most: int, most_bytes: int) -> Iterator[list[_Operation]]:
    chunk: list[_Operation] = []
    size = 0
    for document in documents:
        operation = _operation(document)
        length = len(operation[0]) + len(operation[1])
        if chunk and (len(chunk) >= most or size + length > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(operation)
        size += length
    if chunk:
        yield chunk


def _refusal(url: str, index: str, operation: _Operation, error: Mapping[str, Any]) -> str:
    row = json.loads(operation[0])["create"]["_id"]
    cause = error.get("caused_by", error)
    reason = " ".join(str(cause.get("reason", cause.get("type", "unknown"))).split())[:200]
    return f"Elasticsearch at {url} refuses row {row} of index {index}: {reason}"
