"""Choosing what a picture is painted from: sampling strategies, and live retrieval from many processes."""

from remembrandt.retrieval.conditioning import Conditioning
from remembrandt.retrieval.pool import PoolConfig, RetrievalPool
from remembrandt.retrieval.prefetch import Prefetched, Prefetcher
from remembrandt.retrieval.proposal import ProposalTable, proposal_table
from remembrandt.retrieval.registry import (
    STRATEGIES,
    Queries,
    Strategy,
    StrategyConfig,
    encode_queries,
    parse_strategy,
    texts_to_encode,
)
from remembrandt.retrieval.searcher import Searcher

__all__ = [
    "STRATEGIES",
    "Conditioning",
    "PoolConfig",
    "Prefetched",
    "Prefetcher",
    "ProposalTable",
    "Queries",
    "RetrievalPool",
    "Searcher",
    "Strategy",
    "StrategyConfig",
    "encode_queries",
    "parse_strategy",
    "proposal_table",
    "texts_to_encode",
]
