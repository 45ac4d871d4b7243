"""Search parameters by measurement: the least effort whose recall reaches the floor.

Letters in names: B queries, D embedding, K results.
"""

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.databases.vectors.config import VectorPlan
from remembrandt.databases.vectors.exact import TIE_MARGIN, Fetch
from remembrandt.databases.vectors.factory import num_leaves, parse_factory

CONFIDENCE = 1.645
"""One-sided 95 %: the sample's recall minus this many standard errors must reach the floor."""
MAX_RERANK = 80
_FLATTENS = 0.002
_TIMED_QUERIES = 100


@dataclass(frozen=True)
class RecallReport:
    """Recall of an index against exact search, and what it costs.

    Attributes:
        recall: mean recall@k.
        lower_bound: of the mean, 95 % one-sided; this is what is held against `floor`.
        floor: what was asked for.
        k: results a query.
        queries: how many were measured.
        nprobe: inverted lists visited a query (0: none in this index).
        ef_search: breadth in graphs (0: none in this index).
        rerank: candidates scored exactly per result (0: none).
        p50_ms: median time of a single query in milliseconds.
    """

    recall: float
    lower_bound: float
    floor: float
    k: int
    queries: int
    nprobe: int
    ef_search: int
    rerank: int
    p50_ms: float


class Tunable(Protocol):
    """An index whose search parameters can be exchanged."""

    plan: VectorPlan

    def with_plan(self, plan: VectorPlan) -> "Tunable": ...

    def search(self, queries_BD: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None) -> Hits: ...


def recall_at(found: Hits, truth: Hits, k: int) -> NDArray[np.float64]:
    """Recall@k of each query (B,): the share of its true `k` best rows that were found."""
    true_ids = truth.ids[:, :k]
    hit = (found.ids[:, :k, None] == true_ids[:, None, :]) & (true_ids[:, None, :] != PAD_ID)
    wanted = np.maximum((true_ids != PAD_ID).sum(axis=1), 1)
    return hit.any(axis=1).sum(axis=1) / wanted


def tune(
    index: Tunable, queries_BD: NDArray[np.float32], truth: Hits, floor: float, k: int, fetch: Fetch | None = None
) -> tuple[VectorPlan, RecallReport]:
    """Finds the least search effort whose recall@k reaches `floor` with 95 % confidence.

    Where none does, the best that was found is reported, and whoever asked decides.

    Args:
        index: open, over all shards.
        queries_BD: sampled normalised queries (B, D).
        truth: their exact neighbours, at least `k` each.
        floor: least mean recall@k.
        k: results a query.
        fetch: gives normalised embeddings: a row that scores as the last true neighbour does is as good. Where many
            rows are equal, which of them are named true is arbitrary. None: ids alone are compared.
    """
    bench = _Bench(index, queries_BD, truth, floor, k, fetch)
    plan = _least_effort(bench, index.plan)
    while plan.rerank and not bench.reaches(plan) and plan.rerank < MAX_RERANK:
        plan = _least_effort(bench, replace(plan, rerank=2 * plan.rerank))
    recall, bound = bench.measure(plan)
    report = RecallReport(
        recall=recall,
        lower_bound=bound,
        floor=floor,
        k=k,
        queries=len(queries_BD),
        nprobe=plan.nprobe,
        ef_search=plan.ef_search,
        rerank=plan.rerank,
        p50_ms=bench.milliseconds(plan),
    )
    return plan, report


class _Bench:
    """Measures plans, each once."""

    def __init__(
        self,
        index: Tunable,
        queries_BD: NDArray[np.float32],
        truth: Hits,
        floor: float,
        k: int,
        fetch: Fetch | None = None,
    ) -> None:
        self._index, self._queries_BD, self._truth, self._floor, self._k = index, queries_BD, truth, floor, k
        self._fetch = fetch
        self._known: dict[VectorPlan, tuple[float, float]] = {}

    def measure(self, plan: VectorPlan) -> tuple[float, float]:
        """Mean recall and its lower bound."""
        if plan not in self._known:
            found = self._index.with_plan(plan).search(self._queries_BD, self._k)
            recalls = recall_at(found, self._with_equals(found), self._k)
            error = float(recalls.std()) / max(len(recalls), 1) ** 0.5
            self._known[plan] = float(recalls.mean()), float(recalls.mean()) - CONFIDENCE * error
        return self._known[plan]

    def _with_equals(self, found: Hits) -> Hits:
        """The true neighbours, of which those that were missed are replaced by found rows of no lower score."""
        truth = self._truth
        if self._fetch is None:
            return truth
        found_BK, true_BK = found.ids[:, : self._k], truth.ids[:, : self._k].copy()
        least_B = truth.scores[:, : self._k].min(axis=1, where=true_BK != PAD_ID, initial=np.inf)
        others = [np.setdiff1d(own_K[own_K != PAD_ID], true_K) for own_K, true_K in zip(found_BK, true_BK, strict=True)]
        rows_N = np.unique(np.concatenate(others)) if others else np.empty(0, np.int64)
        if not len(rows_N):
            return truth
        vectors_ND = self._fetch(rows_N)
        for number, own in enumerate(others):
            scores = vectors_ND[np.searchsorted(rows_N, own)] @ self._queries_BD[number]
            equal = own[scores >= least_B[number] - TIE_MARGIN]
            missed = np.flatnonzero(~np.isin(true_BK[number], found_BK[number]) & (true_BK[number] != PAD_ID))
            count = min(len(equal), len(missed))
            true_BK[number, missed[:count]] = equal[:count]
        return Hits(true_BK, truth.scores[:, : self._k])

    def reaches(self, plan: VectorPlan) -> bool:
        return self.measure(plan)[1] >= self._floor

    def milliseconds(self, plan: VectorPlan) -> float:
        index = self._index.with_plan(plan)
        times = []
        for query in self._queries_BD[:_TIMED_QUERIES]:
            start = time.perf_counter()
            index.search(query[None], self._k)
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1000 if times else 0.0


def _least_effort(bench: _Bench, plan: VectorPlan) -> VectorPlan:
    """Doubles the effort until the floor is reached or more brings nothing, then halves the interval."""
    name, limit = _knob(plan)
    if name is None:
        return plan
    low, high = 0, 1
    while not bench.reaches(_with(plan, name, high)) and high < limit:
        low, following = high, min(2 * high, limit)
        gain = bench.measure(_with(plan, name, following))[0] - bench.measure(_with(plan, name, low))[0]
        high = following
        if plan.rerank and gain < _FLATTENS and high >= 16:
            break
    if not bench.reaches(_with(plan, name, high)):
        return _with(plan, name, high)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        if bench.reaches(_with(plan, name, middle)):
            high = middle
        else:
            low = middle
    return _with(plan, name, high)


def _knob(plan: VectorPlan) -> tuple[str | None, int]:
    """Which parameter trades time for recall, and its largest value."""
    if plan.backend == "scann":
        return ("nprobe", num_leaves(plan.rows)) if num_leaves(plan.rows) else (None, 0)
    factory = parse_factory(plan.factory)
    if factory.lists:
        return "nprobe", factory.lists
    return ("ef_search", min(plan.rows, 8192)) if factory.graph_m else (None, 0)


def _with(plan: VectorPlan, name: str, value: int) -> VectorPlan:
    return replace(plan, nprobe=value) if name == "nprobe" else replace(plan, ef_search=value)
