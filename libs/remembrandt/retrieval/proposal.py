"""Drawing pseudo-queries from the proposal p_D, truncated to its most likely rows (P1 §3.3, Eq. 5–7, §D.1)."""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from remembrandt.databases.hits import Filter
from remembrandt.errors import SearchError
from remembrandt.retrieval.searcher import Searcher

_PSEUDO_QUERY_STREAM = 1
_POOL_STREAM = 2


@dataclass(frozen=True)
class ProposalTable:
    """The rows with p_D > 0, most likely first, with cumulative weights: made once, then a draw is a binary search.

    One table serves every m, because D(m) is a prefix of it.

    Attributes:
        ids_S: int64 ids of the S rows that are a neighbour of at least one training image; equal p_D in order of id.
        cumulative_S: float64, p_D summed up to and with each of them.
        num_rows: N, rows of the database.
    """

    ids_S: NDArray[np.int64]
    cumulative_S: NDArray[np.float64]
    num_rows: int

    @classmethod
    def of(cls, proposal_N: NDArray[np.float64]) -> "ProposalTable":
        """The table of a proposal p_D (N,).

        Raises:
            SearchError: negative, not finite, or zero everywhere.
        """
        if not np.isfinite(proposal_N).all() or (proposal_N < 0).any() or not (proposal_N > 0).any():
            raise SearchError(
                "the proposal is not a distribution over rows: compute the neighbours of the train set anew"
            )
        support = np.flatnonzero(proposal_N)
        order = np.argsort(-proposal_N[support], kind="stable")
        ids_S = support[order].astype(np.int64)
        return cls(ids_S, np.cumsum(proposal_N[ids_S]), len(proposal_N))

    def within(self, ids_V: NDArray[np.int64]) -> "ProposalTable":
        """p_D of a part of the rows, which is a database of its own: D(m) are the most likely of its own rows.

        Raises:
            SearchError: none of them is a neighbour of a training image.
        """
        (places,) = np.nonzero(np.isin(self.ids_S, ids_V))
        if not len(places):
            raise SearchError(
                "no row of this part of the database is a neighbour of a training image, so that there is no row to "
                "draw a pseudo-query from: widen the filter, or ask with a text"
            )
        shares = np.diff(self.cumulative_S, prepend=0.0)[places]
        return ProposalTable(self.ids_S[places], np.cumsum(shares), len(ids_V))

    def kept(self, top_m: float) -> int:
        """How many rows of the table lie in D(m), the ⌈m·N⌉ most likely rows.

        Raises:
            SearchError: m outside (0, 1].
        """
        if not 0 < top_m <= 1:
            raise SearchError(
                f"top_m = {top_m} is not possible: it is the fraction of most likely rows to keep, above 0 and up to 1"
            )
        # m is the decimal number that the user wrote: ceil(0.07 * 100) in floating point would be 8.
        return min(ceil(Fraction(str(top_m)) * self.num_rows), len(self.ids_S))

    def draw(self, uniforms_B: NDArray[np.float64], top_m: float = 1.0) -> NDArray[np.int64]:
        """x̃ ~ μ = p_D / Z_m on D(m) (P1 Eq. 7), by inversion: one row id (B,) for each uniform number in [0, 1)."""
        kept = self.kept(top_m)
        positions = np.searchsorted(self.cumulative_S[:kept], uniforms_B * self.cumulative_S[kept - 1], side="right")
        drawn_B: NDArray[np.int64] = self.ids_S[np.minimum(positions, kept - 1)]
        return drawn_B


_TABLES_KEPT = 32
_tables: "weakref.WeakKeyDictionary[Searcher, dict[Filter | None, ProposalTable]]" = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


def proposal_table(searcher: Searcher, where: Filter | None = None) -> ProposalTable:
    """The table of a searcher's own proposal; made at the first call, then remembered as long as the searcher lives.

    Args:
        where: the part of it that is the database. Single rows that are excluded stay in: to leave out a neighbour
            draws no other pseudo-query.

    Raises:
        SearchError: the version was built without neighbours, so that it has no proposal, or none within that part.
    """
    part = None if where is None else replace(where, exclude_ids=()) or None
    with _tables_lock:
        tables = _tables.setdefault(searcher, {})
        if None not in tables:
            tables[None] = ProposalTable.of(searcher.proposal())
        if part not in tables:
            table = tables[None].within(searcher.select(part))
            if len(tables) > _TABLES_KEPT:
                del tables[next(own for own in tables if own is not None)]
            tables[part] = table
        return tables[part]


def pseudo_query_uniforms(seeds_B: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
    """A number in [0, 1) for each item, from its seed alone."""
    return _uniforms(seeds_B, _PSEUDO_QUERY_STREAM)


def pool_uniforms(seeds_B: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
    """A number in [0, 1) for each item, from its seed alone; independent of `pseudo_query_uniforms`."""
    return _uniforms(seeds_B, _POOL_STREAM)


def _uniforms(seeds_B: Sequence[int] | NDArray[np.integer], stream: int) -> NDArray[np.float64]:
    """53 random bits of a counter-based generator keyed by (seed, stream), whose raw output no release changes."""
    bits = [int(Philox(key=(int(seed) % 2**64) | stream << 64).random_raw()) >> 11 for seed in seeds_B]
    return np.asarray(bits, dtype=np.float64) * 2.0**-53
