import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from remembrandt.databases.bm25 import Bm25Document, build_embedded, open_bm25
from remembrandt.databases.bm25.analysis import analyze
from remembrandt.databases.bm25.queries import MAX_QUERY_TERMS
from remembrandt.databases.bm25.similarity import decode_lengths, encode_lengths
from remembrandt.databases.hits import PAD_ID, Filter
from remembrandt.errors import CorruptionError, SearchError, VersionError


class Reference:
    """BM25 of every text, straight from the formula in float64."""

    def __init__(self, texts):
        self.documents = [Counter(analyze(text)) for text in texts]
        lengths = np.array([document.total() for document in self.documents])
        average = lengths.sum() / np.count_nonzero(lengths)
        self.norms = 1.2 * (0.25 + 0.75 * decode_lengths()[encode_lengths(lengths)] / average)
        self.filled = np.count_nonzero(lengths)

    def scores(self, query):
        total = np.zeros(len(self.documents))
        for term, times in Counter(analyze(query)).items():
            counts = np.array([document[term] for document in self.documents])
            holders = np.count_nonzero(counts)
            idf = math.log(1 + (self.filled - holders + 0.5) / (holders + 0.5))
            total += times * idf * 2.2 * counts / (counts + self.norms)
        return total


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_the_answer_is_the_exact_top_k(embed, as_documents, emoji_captions, k):
    searcher = embed(as_documents(emoji_captions))
    reference = Reference(emoji_captions)
    queries = random.Random(k).sample(emoji_captions, 30)

    hits = searcher.search(queries, k)

    for query, ids, scores in zip(queries, hits.ids, hits.scores, strict=True):
        exact = reference.scores(query)
        found = ids[ids != PAD_ID]
        assert scores[: len(found)] == pytest.approx(np.sort(exact)[::-1][: len(found)], rel=1e-5)
        assert scores[: len(found)] == pytest.approx(exact[found], rel=1e-5)
        assert len(found) == min(k, np.count_nonzero(exact))


def test_equal_scores_are_ordered_by_row(embed, as_documents):
    searcher = embed(as_documents(["red fox", "blue fox"] * 50))

    hits = searcher.search(["fox", "red fox"], 6)

    assert hits.ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 2, 4, 6, 8, 10]]
    assert len(set(hits.scores[0])) == 1


def test_rows_that_share_no_word_are_not_found_and_the_rest_is_padded(embed, as_documents):
    searcher = embed(as_documents(["red fox", "", "green tree", "red tree"]))

    hits = searcher.search(["red", "violet", "", "—"], 10)

    assert hits.ids[0].tolist() == [0, 3] + [PAD_ID] * 8
    assert np.all(hits.ids[1:] == PAD_ID)
    assert np.all(np.isneginf(hits.scores[1:]))


def test_a_database_without_any_text_answers_with_nothing(embed, as_documents):
    searcher = embed(as_documents(["", " ", "—"]))

    assert np.all(searcher.search(["anything"], 2).ids == PAD_ID)
    assert np.all(embed([]).search(["anything"], 2).ids == PAD_ID)


def test_no_queries_give_no_answers(embed, as_documents):
    hits = embed(as_documents(["red fox"])).search([], 4)

    assert hits.ids.shape == hits.scores.shape == (0, 4)


def test_a_repeated_word_weighs_as_often_as_it_stands_there(embed, as_documents):
    searcher = embed(as_documents(["red", "fox", "tree"]))

    once, twice = (searcher.search([query], 1).scores[0, 0] for query in ("red", "red red"))

    assert twice == pytest.approx(2 * once, rel=1e-6)


def test_of_a_very_long_query_the_first_1024_distinct_words_count(embed, as_documents):
    words = [f"word{number}" for number in range(MAX_QUERY_TERMS + 1)]
    searcher = embed(as_documents(words))

    hits = searcher.search([" ".join(words)], len(words))

    assert np.count_nonzero(hits.ids != PAD_ID) == MAX_QUERY_TERMS
    assert MAX_QUERY_TERMS not in hits.ids


FILTERS = [
    (Filter(equals={"licence": ("MIT",)}), lambda row: row % 2 == 0),
    (Filter(equals={"style": ("3d", "flat"), "licence": ("CC-BY-4.0",)}), lambda row: row % 3 and row % 2),
    (Filter(equals={"key": ("key-7", "key-8", "no such key")}), lambda row: row in (7, 8)),
    (Filter(equals={"group": ("group-2",)}), lambda row: row // 3 == 2),
    (Filter(equals={"artist": ()}), lambda row: False),
    (Filter(exclude_ids=(0, 1, 5, 10_000, -4)), lambda row: row not in (0, 1, 5)),
    (Filter(exclude_groups=("group-0", "group-3")), lambda row: row // 3 not in (0, 3)),
    (Filter(exclude_keys=("key-2",), exclude_ids=(3,)), lambda row: row not in (2, 3)),
]


@pytest.mark.parametrize(("where", "keeps"), FILTERS)
def test_a_filter_keeps_the_ranking_and_drops_the_rest(embed, as_documents, where, keeps):
    texts = [f"fox number{row % 5}" + " red" * (row % 4) for row in range(40)]
    searcher = embed(as_documents(texts))

    unfiltered = searcher.search(["red fox number3"], len(texts))
    hits = searcher.search(["red fox number3"], len(texts), where)

    kept = [row for row in unfiltered.ids[0] if keeps(row)]
    assert hits.ids[0].tolist() == kept + [PAD_ID] * (len(texts) - len(kept))
    assert hits.scores[0, : len(kept)].tolist() == [
        score for row, score in zip(unfiltered.ids[0], unfiltered.scores[0], strict=True) if keeps(row)
    ]


def test_an_unknown_filter_field_is_an_error_that_names_the_nearest(embed, as_documents):
    searcher = embed(as_documents(["red fox"]))

    with pytest.raises(SearchError, match="unknown filter field 'stile': did you mean 'style'"):
        searcher.search(["fox"], 1, Filter(equals={"stile": ("flat",)}))


def test_k_below_one_is_an_error(embed, as_documents):
    with pytest.raises(SearchError, match="k must be at least 1"):
        embed(as_documents(["red fox"])).search(["fox"], 0)


def test_row_ids_may_have_gaps(embed):
    searcher = embed([Bm25Document(5, "red fox"), Bm25Document(90, "red tree"), Bm25Document(10**12, "red tree")])

    hits = searcher.search(["red tree"], 3, Filter(exclude_ids=(90,)))

    assert hits.ids.tolist() == [[10**12, 5, PAD_ID]]


def test_the_same_rows_give_the_same_bytes(tmp_path, as_documents, emoji_captions):
    documents = as_documents(emoji_captions)

    for name in ("one", "two"):
        build_embedded(iter(documents), tmp_path / name)

    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_many_threads_get_the_answers_of_one(embed, as_documents, emoji_captions):
    searcher = embed(as_documents(emoji_captions))
    expected = searcher.search(emoji_captions, 10)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: searcher.search(emoji_captions, 10), range(6)))

    for answer in answers:
        assert np.array_equal(answer.ids, expected.ids)
        assert np.array_equal(answer.scores, expected.scores)


def test_a_batch_gives_the_answers_of_single_queries(embed, as_documents, taxon_names):
    searcher = embed(as_documents(taxon_names))

    batch = searcher.search(taxon_names, 5)

    singles = [searcher.search([name], 5) for name in taxon_names]
    assert np.array_equal(batch.ids, np.concatenate([hits.ids for hits in singles]))
    assert np.array_equal(batch.scores, np.concatenate([hits.scores for hits in singles]))


def remove(path: Path) -> None:
    path.unlink()


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [remove, cut_in_half])
@pytest.mark.parametrize("name", ["header.json", "terms.npy", "documents.npy", "ids.npy", "columns.arrow"])
def test_a_missing_or_shortened_file_is_named(tmp_path, as_documents, emoji_captions, name, damage):
    info = build_embedded(iter(as_documents(emoji_captions)), tmp_path / "bm25")
    damage(tmp_path / "bm25" / name)

    with pytest.raises(CorruptionError, match=name):
        open_bm25(info, tmp_path / "bm25", None)


def test_an_index_of_a_newer_format_is_refused(tmp_path, as_documents):
    info = build_embedded(iter(as_documents(["red fox"])), tmp_path)
    header = tmp_path / "header.json"
    header.write_text(header.read_text().replace('"format": 1', '"format": 2'))

    with pytest.raises(VersionError, match="format 2"):
        open_bm25(info, tmp_path, None)
