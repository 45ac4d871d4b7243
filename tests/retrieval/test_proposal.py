"""Drawing from p_D truncated to its top m (P1 Eq. 7), against the definition written out."""

from decimal import Decimal
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remembrandt.errors import SearchError
from remembrandt.retrieval import ProposalTable, proposal_table
from remembrandt.retrieval.proposal import pool_uniforms, pseudo_query_uniforms

counts = st.lists(st.integers(0, 5), min_size=1, max_size=60).filter(any)
fractions = st.decimals("0.001", "1", places=3)


def truncated(proposal: list[float], top_m: Decimal) -> np.ndarray[Any, Any]:
    """μ of P1 Eq. 7 by sorting everything."""
    kept = sorted(range(len(proposal)), key=lambda n: (-proposal[n], n))[: ceil(top_m * len(proposal))]
    weights = np.zeros(len(proposal))
    weights[kept] = np.asarray(proposal)[kept]
    return np.asarray(weights / weights.sum())


@given(counts, fractions)
@settings(deadline=None)
def test_every_row_gets_its_share_of_the_unit_interval(neighbour_counts: list[int], top_m: Decimal) -> None:
    proposal = np.asarray(neighbour_counts, dtype=np.float64) / sum(neighbour_counts)
    grid = (np.arange(20_000) + 0.5) / 20_000
    drawn = np.bincount(ProposalTable.of(proposal).draw(grid, float(top_m)), minlength=len(proposal)) / len(grid)
    np.testing.assert_allclose(drawn, truncated(proposal.tolist(), top_m), atol=1 / 10_000)


@given(counts, fractions, st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_no_row_without_weight_is_ever_drawn(neighbour_counts: list[int], top_m: Decimal, seed: int) -> None:
    proposal = np.asarray(neighbour_counts, dtype=np.float64) / (2.5 * sum(neighbour_counts))
    allowed = set(np.flatnonzero(truncated(proposal.tolist(), top_m)).tolist())
    extremes = np.array([0.0, 1 - 2.0**-53, *pseudo_query_uniforms([seed])])
    assert set(ProposalTable.of(proposal).draw(extremes, float(top_m)).tolist()) <= allowed


@pytest.mark.parametrize(
    ("top_m", "rows", "kept"), [(0.07, 100, 7), (0.1, 30, 3), (0.01, 50, 1), (1.0, 7, 7), (0.29, 100, 29), (1e-9, 5, 1)]
)
def test_the_number_of_kept_rows_is_exact_in_decimals(top_m: float, rows: int, kept: int) -> None:
    assert ProposalTable.of(np.full(rows, 1 / rows)).kept(top_m) == kept


def test_draws_are_weighted_and_not_uniform_over_the_kept_rows() -> None:
    table = ProposalTable.of(np.array([0.1, 0.6, 0.0, 0.3]))
    drawn = np.bincount(table.draw(pseudo_query_uniforms(range(20_000)), top_m=0.5), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0, 2 / 3, 0, 1 / 3], atol=0.01)


def test_equal_probabilities_are_kept_in_order_of_row_id() -> None:
    table = ProposalTable.of(np.full(10, 0.1))
    assert set(table.draw(pseudo_query_uniforms(range(200)), top_m=0.3).tolist()) == {0, 1, 2}


def test_uniforms_depend_on_the_seed_alone_and_streams_are_independent() -> None:
    seeds = np.arange(5000)
    one, other = pseudo_query_uniforms(seeds), pool_uniforms(seeds)
    np.testing.assert_array_equal(pseudo_query_uniforms(seeds[::-1]), one[::-1])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert one.min() >= 0 and one.max() < 1 and abs(one.mean() - 0.5) < 0.02
    assert pseudo_query_uniforms([7]).tolist() == [pseudo_query_uniforms([2**64 + 7])[0]]


def test_a_seed_draws_the_same_number_in_every_release() -> None:
    np.testing.assert_array_equal(pseudo_query_uniforms([0, 1, 2**63]), GOLDEN)


GOLDEN = [0.8133540609793564, 0.0751511510959112, 0.6179905734437147]


def test_the_table_is_made_once_for_a_searcher(exact_searcher: Any) -> None:
    searcher = exact_searcher(np.ones((3, 2), np.float32), np.array([0.5, 0.5, 0.0]))
    assert proposal_table(searcher) is proposal_table(searcher)
    assert searcher.proposal_calls == 1


@pytest.mark.parametrize("top_m", [0.0, -0.1, 1.5])
def test_an_impossible_fraction_is_refused(top_m: float) -> None:
    with pytest.raises(SearchError, match="above 0 and up to 1"):
        ProposalTable.of(np.ones(3) / 3).draw(np.zeros(1), top_m)


@pytest.mark.parametrize("proposal", [[0.0, 0.0], [0.5, -0.5], [np.nan, 1.0], [np.inf, 0.0]])
def test_what_is_no_distribution_is_refused(proposal: list[float]) -> None:
    with pytest.raises(SearchError, match="not a distribution"):
        ProposalTable.of(np.array(proposal))
