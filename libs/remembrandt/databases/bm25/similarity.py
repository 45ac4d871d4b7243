"""BM25 as Lucene and Elasticsearch compute it, to the last bit.

score(d, q) = Σ_t count_q(t) · idf(t) · (k1 + 1) · tf / (tf + k1 · (1 − b + b · |d| / avgdl)), where |d| is kept in one
byte. Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); Lucene's BM25Similarity; Elasticsearch keeps
the factor k1 + 1. All arithmetic is in float32, as there.
"""

import numpy as np
from numpy.typing import NDArray

K1 = 1.2
B = 0.75

_EXACT = 24  # lengths below this have a code of their own
_MANTISSA_BITS = 3


def decode_lengths() -> NDArray[np.float32]:
    """(256,) the document length that each length byte stands for (Lucene's SmallFloat.byte4ToInt)."""
    codes = np.arange(256, dtype=np.int64)
    large = codes - _EXACT
    mantissa, shift = large & 7, (large >> _MANTISSA_BITS) - 1
    floats = np.where(shift < 0, mantissa, (mantissa | 8) << np.maximum(shift, 0))
    return np.where(codes < _EXACT, codes, _EXACT + floats).astype(np.float32)


def encode_lengths(lengths_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N,) the largest code whose length is not above the document's number of terms."""
    return (np.searchsorted(decode_lengths().astype(np.int64), lengths_N, side="right") - 1).astype(np.uint8)


def length_factors(total_terms: int, documents: int) -> NDArray[np.float32]:
    """(256,) 1 / (k1 · (1 − b + b · |d| / avgdl)) by length byte.

    Args:
        total_terms: terms of all documents together.
        documents: documents that have at least one term; others do not count in the average.
    """
    k1, b, one = np.float32(K1), np.float32(B), np.float32(1)
    average = np.float32(total_terms / max(documents, 1)) or one
    return (one / (k1 * ((one - b) + b * decode_lengths() / average))).astype(np.float32)


def term_weights(
    document_frequencies: NDArray[np.int64], counts: NDArray[np.int64], documents: int
) -> NDArray[np.float32]:
    """(Q,) count · (k1 + 1) · ln(1 + (N − n + ½) / (n + ½)) of each query term that n of N documents hold."""
    frequencies = document_frequencies.astype(np.float64)
    idf = np.log(1 + (documents - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    return ((counts.astype(np.float32) * np.float32(np.float32(1) + np.float32(K1))) * idf).astype(np.float32)
