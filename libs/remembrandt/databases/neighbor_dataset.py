"""Neighbours of a train set on disk: rows and proposal p_D by similarity, and a manifest that vouches for them.

```
<uri>/manifest.json         what was searched, with what, and every file with its SHA-256
<uri>/clip/rows.lance       row i is query i: id, key, ids[k], scores[k], source, (embeddings[k·D], boxes[k·4])
<uri>/clip/proposal.npy     p_D (N,) float64
<uri>/bm25/…                the same by BM25
```
Letters in names: B queries, K neighbours, N rows of the database, D embedding.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from remembrandt.configuration import nearest
from remembrandt.data.sources.common import key_digests
from remembrandt.databases.cache import check_files, local_file
from remembrandt.databases.database import Database
from remembrandt.databases.manifest import MANIFEST, SCHEMA_VERSION, Document, decode_document, digest
from remembrandt.databases.neighbor_search import ExclusionConfig, SameConfig
from remembrandt.databases.rows import open_rows
from remembrandt.errors import SearchError, VersionError
from remembrandt.storage import Store, open_store
from remembrandt.storage.ledger import FileRecord

Similarity = Literal["clip", "bm25"]
PROPOSAL = "proposal.npy"
NO_BOX = -1


class SearchedDatabase(Document):
    """Which version was searched. `manifest_sha256` is None where the neighbours lie inside that version."""

    uri: str
    name: str
    version: str
    rows: int
    dim: int | None
    manifest_sha256: str | None


class NeighborsManifest(Document):
    """Everything that is known of one set of neighbours."""

    schema_version: int = SCHEMA_VERSION
    identity: str
    created_at: str
    database: SearchedDatabase
    encoder: dict[str, str] | None
    train_set: dict[str, Any]
    train_set_fingerprint: str
    queries: int
    failed: int
    num_neighbors: int
    similarities: tuple[Similarity, ...]
    exclude: ExclusionConfig
    where: dict[str, tuple[str, ...]]
    same: SameConfig | None = None
    embeddings: bool
    boxes: bool
    incomplete: dict[str, int]
    files: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class NeighborRows:
    """Neighbours of B queries.

    Attributes:
        keys: of the queries.
        ids: (B, K) int64 row ids, best first; PAD_ID where a query has fewer neighbours.
        scores: (B, K) float32, cosine similarity or BM25; -inf where padded.
    """

    keys: tuple[str, ...]
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Neighbors:
    """Neighbours of a train set by one similarity, opened for reading. Use `Neighbors.open`."""

    def __init__(self, store: Store, manifest: NeighborsManifest, similarity: Similarity) -> None:
        self.manifest, self.similarity = manifest, similarity
        self._root, self._store = store, store.child(similarity)
        self._dataset = open_rows(self._store)

    @classmethod
    def open(
        cls, uri: str, *, similarity: Similarity | None = None, verify: Literal["files", "sizes"] = "files"
    ) -> Self:
        """Opens what `jobs/precompute_neighbors.py` wrote.

        Args:
            similarity: None for the first that was computed.
            verify: `files` hashes every file that this machine has not found intact before; `sizes` looks at sizes.

        Raises:
            VersionError: nothing finished is there.
            CorruptionError: a missing, extra, truncated or altered file, by name.
            SearchError: that similarity was not computed.
        """
        store = open_store(uri)
        if not store.exists(MANIFEST):
            raise VersionError(
                f"no finished neighbours lie at {store.uri}: compute them with jobs/precompute_neighbors.py"
            )
        manifest = decode_document(NeighborsManifest, store.read(MANIFEST), f"{store.uri}/{MANIFEST}")
        check_files(store, [FileRecord(**file) for file in manifest.files], sizes_only=verify == "sizes")
        chosen = similarity or manifest.similarities[0]
        if chosen not in manifest.similarities:
            raise SearchError(
                f"{store.uri} holds no neighbours by '{chosen}': {nearest(chosen, manifest.similarities)}"
            )
        return cls(store, manifest, chosen)

    def __len__(self) -> int:
        return self.manifest.queries

    @property
    def num_neighbors(self) -> int:
        """K."""
        return self.manifest.num_neighbors

    def take(self, positions: ArrayLike, k: int | None = None) -> NeighborRows:
        """The `k` best neighbours (all by default) of queries by position in the sorted train set, in the order asked.

        Raises:
            SearchError: a position or k that does not exist.
        """
        table, inverse = self._table(positions, ["key", "ids", "scores"])
        shape = (len(table), self.num_neighbors)
        wanted = self._check_k(k)
        ids_BK = flat_values(table, "ids").reshape(shape)[inverse, :wanted]
        scores_BK = flat_values(table, "scores").reshape(shape)[inverse, :wanted]
        keys = table.column("key").to_pylist()
        return NeighborRows(tuple(keys[n] for n in inverse), ids_BK, scores_BK)

    def ids(self, keys: Sequence[str], k: int | None = None) -> NDArray[np.int64]:
        """Row ids (B, K) of queries by key.

        Raises:
            SearchError: a key that is not in the train set.
        """
        found = self.take(self.positions(keys), k)
        if list(found.keys) != list(keys):
            raise AssertionError("two keys share a 64-bit digest")
        return found.ids

    def positions(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Positions (B,) of queries by key."""
        digests_N, order_N = self._key_index
        wanted_B = key_digests(keys)
        places_B = np.minimum(np.searchsorted(digests_N, wanted_B), len(digests_N) - 1)
        unknown_B = digests_N[places_B] != wanted_B
        if unknown_B.any():
            unknown = keys[int(np.flatnonzero(unknown_B)[0])]
            raise SearchError(f"'{unknown}' is not among the {len(self):,} queries of {self._root.uri}")
        positions_B: NDArray[np.int64] = order_N[places_B]
        return positions_B

    def embeddings(self, positions: ArrayLike) -> NDArray[np.float32]:
        """Raw embeddings (B, K, D) of the neighbours, where they were stored; zeros where padded."""
        if not self.manifest.embeddings:
            raise SearchError(
                f"{self._root.uri} holds no embeddings: compute it with store_embeddings, or ask the database"
            )
        table, inverse = self._table(positions, ["embeddings"])
        flat = flat_values(table, "embeddings").reshape(len(table), self.num_neighbors, -1)
        return flat[inverse].astype(np.float32)

    def boxes(self, positions: ArrayLike) -> NDArray[np.int32]:
        """Patch boxes (B, K, 4) of the neighbours in pixels of their source images; -1 where there is none."""
        if not self.manifest.boxes:
            raise SearchError(f"{self._root.uri} holds no boxes: compute it with store_boxes, or ask the database")
        table, inverse = self._table(positions, ["boxes"])
        boxes_BK4: NDArray[np.int32] = flat_values(table, "boxes").reshape(len(table), self.num_neighbors, 4)[inverse]
        return boxes_BK4

    def proposal(self) -> NDArray[np.float64]:
        """p_D (N,) of this train set (P1 Eq. 5)."""
        name = f"{self.similarity}/{PROPOSAL}"
        (record,) = [FileRecord(**file) for file in self.manifest.files if file["path"] == name]
        proposal_N: NDArray[np.float64] = np.load(local_file(self._root, record))
        return proposal_N

    def check_database(self, database: Database) -> None:
        """Raises VersionError unless `database` is the version that was searched: ids mean other rows in another."""
        searched = self.manifest.database
        if (searched.name, searched.version) != (database.name, database.version):
            raise VersionError(
                f"{self._root.uri} holds neighbours from version {searched.version} of '{searched.name}', "
                f"not from version {database.version} of '{database.name}': open that version, or compute them anew"
            )

    @cached_property
    def _key_index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Sorted 64-bit digests of all keys, and the position of each."""
        batches = self._dataset.scanner(columns=["key"], scan_in_order=True).to_batches()
        digests_N = np.concatenate([key_digests(batch.column("key").to_pylist()) for batch in batches])
        order_N = np.argsort(digests_N, kind="stable")
        return digests_N[order_N], order_N

    def _table(self, positions: ArrayLike, columns: list[str]) -> tuple[pa.Table, NDArray[np.int64]]:
        wanted = np.atleast_1d(np.asarray(positions, dtype=np.int64))
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            wrong = wanted.min() if wanted.min() < 0 else wanted.max()
            raise SearchError(f"there is no query {wrong}: {self._root.uri} has {len(self):,}")
        unique, inverse = np.unique(wanted, return_inverse=True)
        return self._dataset.take(unique.tolist(), columns=columns), inverse

    def _check_k(self, k: int | None) -> int:
        if k is None:
            return self.num_neighbors
        if not 1 <= k <= self.num_neighbors:
            raise SearchError(
                f"k = {k} is not possible: {self._root.uri} holds {self.num_neighbors} neighbours a query"
            )
        return k


def neighbors_schema(num_neighbors: int, dim: int | None, *, embeddings: bool, boxes: bool) -> pa.Schema:
    """Columns of a fragment; row i of the dataset also gets the id i."""
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int64(), num_neighbors), nullable=False),
        pa.field("scores", pa.list_(pa.float32(), num_neighbors), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
    if embeddings:
        assert dim is not None
        columns.append(pa.field("embeddings", pa.list_(pa.float16(), num_neighbors * dim), nullable=False))
    if boxes:
        columns.append(pa.field("boxes", pa.list_(pa.int32(), num_neighbors * 4), nullable=False))
    return pa.schema(columns)


def flat_values(table: pa.Table | pa.RecordBatch, column: str) -> NDArray[Any]:
    """All values of a fixed-size list column, one after the other."""
    array = table.column(column)
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    values: NDArray[Any] = whole.flatten().to_numpy(zero_copy_only=False)
    return values


def identity_of(*parts: Any) -> str:
    """16 hex digits over plain values: the same neighbours have the same identity."""
    return digest(json.dumps(parts, sort_keys=True).encode())[:16]
