"""Shards as they are searched: memory-mapped, each answering with its own best rows.

Letters in names: B queries, D size behind the pre-transform, M candidates, P probed lists.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.databases.vectors.clustering import all_centroids
from remembrandt.databases.vectors.exact import Fetch, nearest, search_flat, search_rows
from remembrandt.databases.vectors.runtime import GpuIndex, flat_vectors, import_faiss
from remembrandt.databases.vectors.trained import TrainedIndex, read_index
from remembrandt.errors import CorruptionError

Candidates = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores (B, M) and row numbers within the shard (B, M), best first; PAD_ID where there are fewer."""


@dataclass(frozen=True)
class ShardFile:
    """A shard on this machine: row id = first_id + position in the shard."""

    path: Path
    first_id: int
    rows: int


@dataclass(frozen=True)
class Effort:
    """How hard an approximate search tries.

    Attributes:
        nprobe: lists that are visited.
        ef_search: breadth in graphs.
        everything: compare with every row that may answer.
    """

    nprobe: int
    ef_search: int
    everything: bool = False


@dataclass(frozen=True)
class Probe:
    """Queries behind the pre-transform, and the lists to visit for each."""

    queries_BD: NDArray[np.float32]
    lists_BP: NDArray[np.int64] | None
    scores_BP: NDArray[np.float32] | None
    effort: Effort


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows of one shard that may answer.

    Attributes:
        allowed_N: mask over the shard's rows.
        count: how many it allows, at least one and not all.
        selector: the same for FAISS.
        bits: what the selector points to.
        is_kept: whether other searches will select the same.
    """

    allowed_N: NDArray[np.bool_]
    count: int
    selector: Any
    bits: NDArray[np.uint8]
    is_kept: bool

    @classmethod
    def of(cls, allowed_N: NDArray[np.bool_], count: int, is_kept: bool = False) -> "Selection":
        """Packs a mask into the bitmap that FAISS reads."""
        faiss = import_faiss()
        bits = np.packbits(allowed_N, bitorder="little")
        return cls(allowed_N, count, faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)), bits, is_kept)

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """The rows, in order."""
        return np.flatnonzero(self.allowed_N)


class SearchableShard(Protocol):
    """One shard, open."""

    file: ShardFile

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        """The best `m` rows of each query, among the selected ones (None: all)."""


def open_shard(file: ShardFile, trained: TrainedIndex, mmap: bool, gpu: int | None) -> SearchableShard:
    """Opens a shard's file.

    Args:
        mmap: map the file instead of reading it: pages come in as they are touched, shared by all processes.
        gpu: also keep a copy on this GPU, for searches without a mask.

    Raises:
        CorruptionError: unreadable, of another size, or of another trained index.
    """
    faiss = import_faiss()
    flags = (faiss.IO_FLAG_MMAP if trained.ivf is not None else faiss.IO_FLAG_MMAP_IFC) if mmap else 0
    index = read_index(file.path, flags)
    if index.ntotal != file.rows:
        raise CorruptionError(f"{file.path} holds {index.ntotal:,} rows, not {file.rows:,}: restore it or rebuild")
    if not trained.fits(index):
        raise CorruptionError(f"{file.path} was not built with the trained index beside it: restore both or rebuild")
    if trained.ivf is not None:
        return ListShard(file, index, trained, gpu)
    if hasattr(index, "hnsw"):
        return GraphShard(file, index)
    return FlatShard(file, index, gpu)


class ListShard:
    """Inverted lists over centroids that all shards share."""

    def __init__(self, file: ShardFile, index: Any, trained: TrainedIndex, gpu: int | None) -> None:
        self.file, self._index = file, index
        index.own_fields = False
        index.quantizer = trained.quantizer
        self._keep = trained
        self._gpu = GpuIndex(index, gpu) if gpu is not None else None

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        """Visits the probed lists."""
        faiss = import_faiss()
        if self._gpu is not None and selection is None and max(m, probe.effort.nprobe) <= GpuIndex.LIMIT:
            params = faiss.SearchParametersIVF(nprobe=probe.effort.nprobe)
            return self._gpu.search(probe.queries_BD, m, params)
        assert probe.lists_BP is not None and probe.scores_BP is not None
        count = len(probe.queries_BD)
        scores, ids = np.empty((count, m), np.float32), np.empty((count, m), np.int64)
        params = faiss.SearchParametersIVF(nprobe=probe.lists_BP.shape[1], sel=_selector(selection))
        self._index.search_preassigned_c(
            count,
            faiss.swig_ptr(probe.queries_BD),
            m,
            faiss.swig_ptr(probe.lists_BP),
            faiss.swig_ptr(probe.scores_BP),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(ids),
            False,
            params,
        )
        return scores, ids


class FlatShard:
    """Every row is compared: full precision or scalar-quantised.

    Rows of full precision that other searches will select again are kept side by side, while they are not too many.
    """

    COPIED_BYTES = 128_000_000

    def __init__(self, file: ShardFile, index: Any, gpu: int | None) -> None:
        self.file, self._index = file, index
        self._gpu = GpuIndex(index, gpu) if gpu is not None else None
        self._vectors_ND = flat_vectors(index)
        self._copies: WeakKeyDictionary[Selection, NDArray[np.float32]] = WeakKeyDictionary()

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        """Compares with every row."""
        if self._gpu is not None and selection is None and m <= GpuIndex.LIMIT:
            return self._gpu.search(probe.queries_BD, m)
        if selection is None:
            return search_flat(self._index, self._vectors_ND, probe.queries_BD, m)
        if (copied_MD := self._copy(selection)) is not None:
            scores, places = nearest(probe.queries_BD, copied_MD, m)
            return scores, selection.positions[places]
        params = import_faiss().SearchParameters(sel=selection.selector)
        scores, ids = self._index.search(probe.queries_BD, m, params=params)
        return scores, ids

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors (N, D) of a full-precision shard."""
        return self._index.reconstruct_batch(np.ascontiguousarray(positions_N))

    def _copy(self, selection: Selection) -> NDArray[np.float32] | None:
        """The selected rows side by side, if they are worth their memory."""
        if self._vectors_ND is None or not selection.is_kept:
            return None
        copy = self._copies.get(selection)
        if copy is None:
            held = sum(own.nbytes for own in list(self._copies.values()))
            if held + selection.count * self._vectors_ND[0].nbytes > self.COPIED_BYTES:
                return None
            copy = self._copies[selection] = self._vectors_ND[selection.positions]
        return copy


class GraphShard:
    """An HNSW graph over the shard's rows."""

    def __init__(self, file: ShardFile, index: Any) -> None:
        self.file, self._index = file, index
        self._rows = all_centroids(index)

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        """Walks the graph, or compares with every row where the effort says so."""
        faiss = import_faiss()
        if probe.effort.everything:
            params = faiss.SearchParameters(sel=_selector(selection)) if selection else None
            return self._rows.search(probe.queries_BD, m, params=params)
        params = faiss.SearchParametersHNSW(efSearch=max(probe.effort.ef_search, m), sel=_selector(selection))
        return self._index.search(probe.queries_BD, m, params=params)


class Mask:
    """A mask over all row ids, cut into what each shard needs.

    Attributes:
        allowed_N: the mask.
        counts: allowed rows of each shard.
        selections: the selection of each shard, None where all or no rows of it may answer.
        is_kept: whether other searches will have the same mask.
    """

    KEPT_ROWS = 8192
    """Fetched embeddings are kept for the next search up to this many rows."""

    def __init__(self, allowed_N: NDArray[np.bool_], shards: list[SearchableShard], is_kept: bool = False) -> None:
        self.allowed_N = allowed_N
        parts = [allowed_N[s.file.first_id : s.file.first_id + s.file.rows] for s in shards]
        self.counts = [int(np.count_nonzero(part)) for part in parts]
        self.selections = [
            Selection.of(part, count, is_kept) if 0 < count < len(part) else None
            for part, count in zip(parts, self.counts, strict=True)
        ]
        self._kept: NDArray[np.float64] | None = None

    def search_few(self, queries_BD: NDArray[np.float32], k: int, shards: list[SearchableShard], fetch: Fetch) -> Hits:
        """The true `k` best of the allowed rows of these shards, by their fetched embeddings."""
        spans = [(s.file.first_id, s.file.first_id + s.file.rows) for s in shards]
        ids = np.concatenate([np.flatnonzero(self.allowed_N[first:stop]) + first for first, stop in spans])
        if self._kept is None and len(ids) <= self.KEPT_ROWS:
            self._kept = fetch(ids).astype(np.float64)
        if self._kept is not None:
            return search_rows(queries_BD, ids, self._kept, k)
        parts = [ids[start : start + self.KEPT_ROWS] for start in range(0, len(ids), self.KEPT_ROWS)]
        return Hits.merge([search_rows(queries_BD, part, fetch(part), k) for part in parts], k)


def _selector(selection: Selection | None) -> Any | None:
    return selection.selector if selection else None


def to_row_ids(positions_BM: NDArray[np.int64], first_id: int) -> NDArray[np.int64]:
    """Row ids from positions in a shard; padding stays padding."""
    return np.where(positions_BM == PAD_ID, PAD_ID, positions_BM + first_id)
