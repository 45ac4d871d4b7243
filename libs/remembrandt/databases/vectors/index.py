"""The vector index of a database: shards with shared centroids, searched as one.

Letters in names: B queries, D embedding, K results, M candidates, N rows, P probed lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.databases.vectors.clustering import all_centroids
from remembrandt.databases.vectors.config import Device, VectorPlan
from remembrandt.databases.vectors.exact import (
    SLACK,
    TIE_MARGIN,
    Fetch,
    merge_candidates,
    rescore,
    search_flat,
    stack_hits,
)
from remembrandt.databases.vectors.factory import parse_factory
from remembrandt.databases.vectors.runtime import flat_vectors, import_faiss, num_gpus, parallel_rows
from remembrandt.databases.vectors.scann import ScannShard, scann_kind
from remembrandt.databases.vectors.shards import (
    Effort,
    FlatShard,
    Mask,
    Probe,
    SearchableShard,
    ShardFile,
    open_shard,
    to_row_ids,
)
from remembrandt.databases.vectors.trained import TrainedIndex
from remembrandt.errors import SearchError

MAX_TIED = 16_384
"""Equal scores that are followed beyond k to order them by row id; more of them come in the index's order."""
FEW_ROWS = 256
FEW_SHARE = 1e-3
"""Up to this many allowed rows (or this share of all), fetching them is cheaper than scanning lists for them."""
LEAST_COMPARED = 4096
"""Allowed rows that are compared at least (or all of them) under a mask: about half a millisecond a query."""
_CHUNK_VALUES = 1 << 22
_MASKS_KEPT, _MASK_BYTES, _MASKS_BYTES = 8, 1_000_000, 64_000_000


@dataclass(frozen=True)
class _Found:
    """Candidates of one pass: (B, M) merged over shards, and the best score that any shard may have left out (B,)."""

    hits: Hits
    left_out: NDArray[np.float32]


class VectorIndex:
    """Searches all or some shards of a database. Open with `VectorIndex.open`; thread-safe."""

    def __init__(
        self, plan: VectorPlan, trained: TrainedIndex | None, shards: Sequence[SearchableShard], fetch: Fetch | None
    ) -> None:
        self.plan = plan
        self.rows = sum(shard.file.rows for shard in shards)
        self._trained, self._shards, self._fetch = trained, list(shards), fetch
        self._factory = scann_kind(plan) if plan.backend == "scann" else parse_factory(plan.factory)
        self._masks: dict[int, Mask] = {}
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        plan: VectorPlan,
        trained: Path,
        shards: Sequence[ShardFile],
        fetch: Fetch | None = None,
        mmap: bool = True,
        device: Device = "auto",
    ) -> Self:
        """Opens shards for search.

        Args:
            plan: with tuned search parameters.
            trained: the file of `train_index`.
            shards: any of the database's shards.
            fetch: gives normalised embeddings of row ids, for exact re-ranking and for very selective masks.
            mmap: map shard files instead of reading them.
            device: `auto` searches on GPUs where FAISS sees them.

        Raises:
            CorruptionError: a file that is missing, truncated or belongs elsewhere, by name.
            ConfigError: FAISS is not installed, or `gpu` without one.
        """
        if plan.backend == "scann":
            return cls(plan, None, [ScannShard(file) for file in shards], fetch)
        gpus = num_gpus(device)
        loaded = TrainedIndex.load(trained)
        opened = [open_shard(file, loaded, mmap, number % gpus if gpus else None) for number, file in enumerate(shards)]
        return cls(plan, loaded, opened, fetch)

    def with_plan(self, plan: VectorPlan) -> "VectorIndex":
        """The same open shards, searched with other parameters."""
        return VectorIndex(plan, self._trained, self._shards, self._fetch)

    def search(self, queries_BD: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits:
        """The `k` rows of highest cosine similarity to each query, ties ordered by row id.

        As many results as `k` and the allowed rows permit always come back, however selective the mask; the rest is
        padding.

        Args:
            queries_BD: L2-normalised queries (B, D).
            k: results a query.
            allowed: mask (N,) over all row ids of the database; None allows all. One that is not writeable is
                prepared once and remembered.

        Raises:
            SearchError: k below 1, queries of another size, or a mask of another length.
        """
        queries = np.ascontiguousarray(queries_BD, dtype=np.float32)
        self._check(queries, k, allowed)
        mask = self._mask(allowed) if allowed is not None else None
        available = sum(mask.counts) if mask else self.rows
        if not len(queries) or not available:
            return Hits(np.full((len(queries), k), PAD_ID, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        if mask and not self._factory.exact and self._fetch and available <= max(FEW_ROWS, FEW_SHARE * self.rows):
            return mask.search_few(queries, k, self._shards, self._fetch)
        step = self._step(k, available)
        parts = parallel_rows(lambda part_BD: self._search_in_steps(part_BD, k, mask, available, step), queries)
        return stack_hits(parts)

    def takes(self, masks: int) -> bool:
        """Whether `search_each` takes so many: where every row is compared, and while they fit in memory together."""
        return self._factory.exact and not self.plan.rerank and 0 < masks * self.rows <= _MASKS_BYTES

    def search_each(
        self,
        queries_BD: NDArray[np.float32],
        k: int,
        masks: Sequence[NDArray[np.bool_] | None],
        which_B: NDArray[np.intp],
    ) -> Hits:
        """As `search`, each query under a mask of its own: query b under `masks[which_B[b]]`; if `takes` says so.

        All queries are ordered together: a search for each mask would take as long again to order its few candidates
        as to find them.
        """
        assert self.takes(len(masks))
        queries = np.ascontiguousarray(queries_BD, dtype=np.float32)
        for allowed in masks:
            self._check(queries, k, allowed)
        kept = [None if allowed is None else self._mask(allowed) for allowed in masks]
        parts = parallel_rows(
            lambda places: self._compare(queries[places], k, kept, which_B[places]), np.arange(len(queries))
        )
        return stack_hits(parts)

    def close(self) -> None:
        """Drops the shards and their memory maps."""
        self._shards, self._masks, self.rows = [], {}, 0

    def _search_in_steps(
        self, queries_BD: NDArray[np.float32], k: int, mask: Mask | None, available: int, step: int
    ) -> Hits:
        starts = range(0, len(queries_BD), step)
        return stack_hits([self._search(queries_BD[i : i + step], k, mask, available) for i in starts])

    def _search(self, queries_BD: NDArray[np.float32], k: int, mask: Mask | None, available: int) -> Hits:
        """Searches, and searches again harder for queries with too few results or with ties at the border."""
        reranks = self.plan.rerank > 0 and self._fetch is not None
        m = min(available, k * self.plan.rerank if reranks else k + SLACK)
        effort = self._first_effort(available)
        vectors = self._trained.transform(queries_BD) if self._trained else queries_BD
        ids = np.full((len(queries_BD), k), PAD_ID, np.int64)
        scores = np.full((len(queries_BD), k), -np.inf, np.float32)
        todo = np.arange(len(queries_BD))
        while True:
            found = self._pass(vectors[todo], m, effort, mask)
            best = self._order(queries_BD[todo], found.hits, k, reranks)
            ids[todo], scores[todo] = best.ids, best.scores
            short = (best.ids[:, min(k, available) - 1] == PAD_ID) & (not effort.everything)
            tied = self._tied(found, k) if not reranks and m < min(available, MAX_TIED) else np.zeros_like(short)
            if not (short | tied).any():
                return Hits(ids, scores)
            effort = self._harder(effort) if short.any() else effort
            m = min(available, 4 * m, MAX_TIED) if tied.any() else m
            todo = todo[short | tied]

    def _compare(
        self, queries_BD: NDArray[np.float32], k: int, masks: Sequence[Mask | None], which_B: NDArray[np.intp]
    ) -> Hits:
        """One pass for each mask, and one order for all; those with ties at the border are searched again."""
        m = min(self.rows, k + SLACK)
        ids = np.full((len(queries_BD), m), PAD_ID, np.int64)
        scores = np.full((len(queries_BD), m), -np.inf, np.float32)
        left_out = np.full(len(queries_BD), -np.inf, np.float32)
        for number, mask in enumerate(masks):
            (places,) = np.nonzero(which_B == number)
            if len(places) and (mask is None or sum(mask.counts)):
                own = self._pass(queries_BD[places], m, Effort(0, 0, everything=True), mask)
                width = own.hits.ids.shape[1]
                ids[places, :width], scores[places, :width] = own.hits.ids, own.hits.scores
                left_out[places] = own.left_out
        found = _Found(Hits(ids, scores), left_out)
        best = self._order(queries_BD, found.hits, k, reranks=False)
        for place in np.flatnonzero(self._tied(found, k)) if m < self.rows else ():
            mask = masks[which_B[place]]
            alone = self._search(queries_BD[place : place + 1], k, mask, sum(mask.counts) if mask else self.rows)
            best.ids[place], best.scores[place] = alone.ids[0], alone.scores[0]
        return best

    def _pass(self, vectors_BD: NDArray[np.float32], m: int, effort: Effort, mask: Mask | None) -> _Found:
        probe = self._probe(np.ascontiguousarray(vectors_BD), effort)
        ids: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        left_out = np.full(len(vectors_BD), -np.inf, np.float32)
        for number, shard in enumerate(self._shards):
            count = mask.counts[number] if mask else shard.file.rows
            if not count:
                continue
            take = min(m, count)
            found, positions = shard.search(probe, take, mask.selections[number] if mask else None)
            ids.append(to_row_ids(positions, shard.file.first_id))
            scores.append(found)
            if take < count:
                left_out = np.maximum(left_out, np.where(positions[:, -1] == PAD_ID, -np.inf, found[:, -1]))
        if len(ids) == 1:  # they are in order, but for ties
            return _Found(Hits(ids[0], np.where(ids[0] == PAD_ID, -np.inf, scores[0]).astype(np.float32)), left_out)
        return _Found(merge_candidates(np.concatenate(ids, axis=1), np.concatenate(scores, axis=1), m), left_out)

    def _probe(self, vectors_BD: NDArray[np.float32], effort: Effort) -> Probe:
        """Quantises once for all shards."""
        if self._trained is None or self._trained.quantizer is None:
            return Probe(vectors_BD, None, None, effort)
        quantizer, params = self._trained.quantizer, None
        if self._factory.coarse_m and effort.nprobe * 8 >= self._factory.lists:
            quantizer = all_centroids(quantizer)
        elif self._factory.coarse_m:
            params = import_faiss().SearchParametersHNSW(efSearch=max(effort.ef_search, 2 * effort.nprobe))
        if params is None:
            scores, lists = search_flat(quantizer, flat_vectors(quantizer), vectors_BD, effort.nprobe)
        else:
            scores, lists = quantizer.search(vectors_BD, effort.nprobe, params=params)
        return Probe(vectors_BD, lists, scores, effort)

    def _order(self, queries_BD: NDArray[np.float32], found: Hits, k: int, reranks: bool) -> Hits:
        if reranks:
            assert self._fetch is not None
            return rescore(queries_BD, found.ids, self._fetch, k)
        if self._factory.exact:
            return rescore(queries_BD, found.ids, self._stored, k)
        return merge_candidates(found.ids, found.scores, k)

    def _tied(self, found: _Found, k: int) -> NDArray[np.bool_]:
        """Whether a row that was left out might equal the k-th result."""
        if found.hits.ids.shape[1] < k:
            return np.zeros(len(found.left_out), dtype=bool)
        margin = TIE_MARGIN if self._factory.exact else 0.0
        last = found.hits.scores[:, k - 1]
        return ~np.isneginf(found.left_out) & (found.left_out >= last - margin)

    def _stored(self, ids_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of a full-precision index by row id."""
        vectors = np.empty((len(ids_N), self.plan.dim), np.float32)
        for shard in self._shards:
            assert isinstance(shard, FlatShard)
            inside = (ids_N >= shard.file.first_id) & (ids_N < shard.file.first_id + shard.file.rows)
            if inside.any():
                vectors[inside] = shard.vectors(ids_N[inside] - shard.file.first_id)
        return vectors

    def _first_effort(self, available: int) -> Effort:
        """The plan's, and more lists the fewer rows may answer, so that as many of them are compared.

        The nearest allowed rows lie further away than the nearest rows; the more so, the fewer are allowed.
        """
        share = available / self.rows
        wanted = max(1, self.plan.nprobe) / share
        if share < 1:
            wanted = max(wanted, self._factory.lists * LEAST_COMPARED / available)
        nprobe = min(self._factory.lists, int(np.ceil(wanted)))
        ef_search = min(self.rows, int(np.ceil(self.plan.ef_search / share)))
        walk_is_pointless = bool(self._factory.graph_m) and share < 0.1
        return Effort(nprobe, ef_search, walk_is_pointless or self._is_everything(nprobe, ef_search))

    def _harder(self, effort: Effort) -> Effort:
        nprobe, ef_search = min(self._factory.lists, 8 * effort.nprobe), min(self.rows, 8 * effort.ef_search)
        return Effort(nprobe, ef_search, self._is_everything(nprobe, ef_search) or bool(self._factory.graph_m))

    def _is_everything(self, nprobe: int, ef_search: int) -> bool:
        if self._factory.lists:
            return nprobe == self._factory.lists
        return ef_search >= self.rows if self._factory.graph_m else True

    def _step(self, k: int, available: int) -> int:
        """Queries a pass, so that candidates and probes of one pass stay in the cache's and memory's reach."""
        width = max(len(self._shards) * k * max(2, self.plan.rerank), self._first_effort(available).nprobe, 1)
        return max(1, _CHUNK_VALUES // width)

    def _mask(self, allowed_N: NDArray[np.bool_]) -> Mask:
        if allowed_N.flags.writeable:
            return Mask(allowed_N, self._shards)
        with self._lock:
            mask = self._masks.get(id(allowed_N))
            if mask is None:
                mask = Mask(allowed_N, self._shards, is_kept=True)
                while len(self._masks) >= max(_MASKS_KEPT, _MASK_BYTES // len(allowed_N)):
                    del self._masks[next(iter(self._masks))]
                self._masks[id(allowed_N)] = mask
            return mask

    def _check(self, queries_BD: NDArray[np.float32], k: int, allowed_N: NDArray[np.bool_] | None) -> None:
        if k < 1:
            raise SearchError(f"k = {k} is not possible: ask for at least 1 result")
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.plan.dim:
            raise SearchError(f"queries have shape {queries_BD.shape}, and the index has {self.plan.dim} dimensions")
        if allowed_N is not None and (allowed_N.dtype != bool or allowed_N.shape != (self.plan.rows,)):
            raise SearchError(
                f"the mask has shape {allowed_N.shape} and type {allowed_N.dtype}: give one bool for each of the "
                f"{self.plan.rows:,} rows"
            )
