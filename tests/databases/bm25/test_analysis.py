import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remembrandt.databases.bm25 import analysis
from remembrandt.databases.bm25.analysis import MAX_TERM_UNITS, analyze


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("See-No-Evil Monkey", ["see", "no", "evil", "monkey"]),
        ("the lion's 3.5 kg, 1,000; e.g. U.S.A.", ["the", "lion's", "3.5", "kg", "1,000", "e.g", "u.s.a"]),
        ("sp. BIOUG26488-F02", ["sp", "bioug26488", "f02"]),
        ("snake_case __ _private", ["snake_case", "_private"]),
        ("don’t κῆτος Größe", ["don’t", "κῆτος", "größe"]),
        ("北京 ひらがな カタカナ", ["北", "京", "ひ", "ら", "が", "な", "カタカナ"]),
        ("한국어 ภาษาไทย", ["한국어", "ภาษาไทย"]),
        ("cafe\u0301", ["cafe\u0301"]),
        ("🙈monkey 👩‍🚀 🇵🇭🇨🇭 #️⃣", ["🙈", "monkey", "👩‍🚀", "🇵🇭", "🇨🇭", "#️⃣"]),
        ("ΣΟΦΟΣ İstanbul", ["σοφοσ", "istanbul"]),
        ("", []),
        (" .,;!? — ", []),
    ],
)  # fmt: skip
def test_words_are_those_of_unicode_annex_29_in_lower_case(text, terms):
    assert analyze(text) == terms


@pytest.mark.parametrize("letter", ["a", "é", "𐀀"])
def test_a_word_without_end_is_cut_into_pieces_of_255_units(letter):
    pieces = analyze(letter * 700)

    assert "".join(pieces) == letter * 700
    assert max(len(piece.encode("utf-16-le")) // 2 for piece in pieces) <= MAX_TERM_UNITS


@given(st.text(alphabet="aZ09_.,:;'\" -#*", max_size=40))
def test_the_short_cut_for_ascii_gives_what_the_general_rules_give(text):
    assert analysis._ascii_terms(text) == analysis._unicode_terms(text)


@given(st.text(max_size=60))
def test_any_text_has_terms_that_are_terms_of_themselves(text):
    for term in analyze(text):
        assert analyze(term)


@pytest.mark.parametrize("unit", ["a.", "_", "א'", "\u200d", "👩\u200d", "1,", "ア_"])
def test_repetitive_text_takes_time_in_proportion_to_its_length(unit):
    start = time.process_time()
    analyze(unit * 20_000)

    assert time.process_time() - start < 5
