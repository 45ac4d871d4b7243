import math

import numpy as np
import pytest

from remembrandt.databases.bm25.elastic_loader import num_shards
from remembrandt.databases.bm25.similarity import K1, B, decode_lengths, encode_lengths, length_factors, term_weights


def test_short_lengths_are_kept_exactly_and_long_ones_to_an_eighth():
    lengths = np.array([0, 1, 23, 24, 39, 40, 41, 42, 100, 1_000, 65_535, 2**31 - 1])

    kept = decode_lengths()[encode_lengths(lengths)]

    assert kept.tolist()[:6] == [0, 1, 23, 24, 39, 40]
    assert kept.tolist()[6:8] == [40, 42]
    assert np.all(kept <= lengths)
    assert np.all(kept >= lengths * 7 / 8)


def test_every_length_code_stands_for_itself():
    assert np.array_equal(encode_lengths(decode_lengths().astype(np.int64)), np.arange(256))


def test_one_term_scores_as_the_formula_says():
    documents, frequency, count, length, average = 1000, 10, 3, 20, 25.0

    weight = term_weights(np.array([frequency]), np.array([1]), documents)[0]
    factor = length_factors(int(average * documents), documents)[length]
    score = weight - weight / (1 + count * factor)

    idf = math.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))
    expected = idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / average))
    assert score == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "shards"), [(0, 1), (1, 1), (50_000_000, 1), (50_000_001, 2), (10**9, 20), (10**12, 1024)]
)
def test_an_index_has_one_shard_for_each_started_50_million_rows(rows, shards):
    assert num_shards(rows) == shards
