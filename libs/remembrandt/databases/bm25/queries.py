"""What a query text becomes, for both backends alike."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice

from remembrandt.databases.bm25.analysis import analyze

MAX_QUERY_TERMS = 1024
"""Distinct terms of a query that count; later ones are left out. Elasticsearch refuses larger queries."""


def query_terms(text: str) -> Mapping[str, int]:
    """Distinct terms in order of appearance, with how often each occurs: a repeated term weighs as often."""
    return limited(count_terms(text))


def count_terms(text: str) -> Mapping[str, int]:
    """All distinct terms with their counts."""
    return Counter(analyze(text))


def limited(terms: Mapping[str, int]) -> Mapping[str, int]:
    """The first MAX_QUERY_TERMS of `terms`."""
    return terms if len(terms) <= MAX_QUERY_TERMS else dict(islice(terms.items(), MAX_QUERY_TERMS))
