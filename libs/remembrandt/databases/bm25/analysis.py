"""Text → terms, exactly as Elasticsearch's `standard` tokenizer and `lowercase` filter do it.

The tokenizer follows the rules of Unicode Annex #29 with Lucene's additions: emoji sequences are words, ideographs and
Hiragana stand alone, South-East Asian runs stay whole. Characters are first mapped to one letter for their class,
and a small pattern over these letters finds the words.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from importlib import resources

ANALYZER = "standard"
"""Name of the analysis: UAX #29 words, lower case, no stop words, no stemming."""

MAX_TERM_UNITS = 255
"""Longer words are cut into pieces of this many UTF-16 units, as Lucene's standard tokenizer does."""

_LETTER_OF_CLASS = {
    "ALetter": "A",
    "Emoji_Letter": "G",
    "Hebrew_Letter": "H",
    "Numeric": "N",
    "Katakana": "K",
    "ExtendNumLet": "U",
    "MidLetter": "L",
    "MidNumLet": "B",
    "MidNum": "C",
    "Single_Quote": "Q",
    "Double_Quote": "D",
    "Extend": "E",
    "ZWJ": "Z",
    "Emoji_Selector": "F",
    "Text_Selector": "T",
    "Modifier": "M",
    "Complex": "X",
    "Complex_Extend": "Y",
    "Keycap": "V",
    "Keycap_Base": "#",
    "Emoji": "P",
    "Regional_Indicator": "I",
    "Ideograph": "S",
}
_OTHER = "-"
_FEW_CONNECTORS = 64

_ASCII_WORD = re.compile(r"(?:\w(?:[:.'](?<=[A-Za-z].)(?=[A-Za-z])|[,;.'](?<=[0-9].)(?=[0-9]))?)+", re.ASCII)
_SPACES = re.compile(r"[ \t\r\n]+")


def analyze(text: str) -> list[str]:
    """The terms of `text` in order, repeated ones included; [] if it has none."""
    if text.isascii():
        return _ascii_terms(text)
    terms: list[str] = []
    for piece in _SPACES.split(text):
        terms += _ascii_terms(piece) if piece.isascii() else _unicode_terms(piece)
    return terms


def _ascii_terms(text: str) -> list[str]:
    terms = _ASCII_WORD.findall(text.lower())
    if len(text) > MAX_TERM_UNITS and any(len(term) > MAX_TERM_UNITS for term in terms):
        return _unicode_terms(text)
    return [term for term in terms if term.strip("_")] if "_" in text else terms


def _unicode_terms(text: str) -> list[str]:
    classes = text.translate(_classes())
    # Runs of connectors that lead to no word cost time in the square of their length, unless the view is limited.
    if "Z" in classes or classes.count("U") > _FEW_CONNECTORS:
        spans = list(_scan(text, classes))
    else:
        spans = [match.span() for match in _words().finditer(classes)]
        if any(_units(text[start:stop]) > MAX_TERM_UNITS for start, stop in spans):
            spans = list(_scan(text, classes))
    return [_lower(text[start:stop]) for start, stop in spans]


def _scan(text: str, classes: str) -> Iterator[tuple[int, int]]:
    """Spans of words, the longest of all rules at each place, looking at most MAX_TERM_UNITS ahead."""
    position = 0
    while position < len(text):
        end = min(len(text), position + MAX_TERM_UNITS)
        while _units(text[position:end]) > MAX_TERM_UNITS:
            end -= 1
        found = [pattern.match(classes, position, end) for pattern in (_words(), _joined_emoji())]
        stop = max((match.end() for match in found if match), default=0)
        if stop:
            yield position, stop
        position = stop or position + 1


def _units(word: str) -> int:
    """Length in UTF-16 units, in which Java counts."""
    return len(word) if word.isascii() else len(word.encode("utf-16-le", "surrogatepass")) // 2


def _lower(word: str) -> str:
    """Lower case code point by code point, as Java's `Character.toLowerCase`: `str.lower` also looks at neighbours."""
    return word.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()


class _ClassTable(dict[int, str]):
    """Code point → letter of its class, for `str.translate`; filled as code points turn up."""

    def __init__(self, ranges: list[tuple[int, int, str]]) -> None:
        super().__init__()
        self._ranges = sorted(ranges)
        self._starts = [first for first, _, _ in self._ranges]

    def __missing__(self, code_point: int) -> str:
        position = bisect_right(self._starts, code_point) - 1
        letter = _OTHER
        if position >= 0 and code_point <= self._ranges[position][1]:
            letter = self._ranges[position][2]
        self[code_point] = letter
        return letter


@cache
def _classes() -> _ClassTable:
    ranges: list[tuple[int, int, str]] = []
    letter = _OTHER
    text = resources.files(__package__).joinpath("word_break.txt").read_text(encoding="ascii")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        for part in line.split():
            if part.endswith(":"):
                letter = _LETTER_OF_CLASS[part[:-1]]
                continue
            first, _, last = part.partition("-")
            ranges.append((int(first, 16), int(last or first, 16), letter))
    return _ClassTable(ranges)


_EXTEND = "[EZFTMYV]*"
_IN_EMOJI = "[EZMYV]*"  # extending characters except the presentation selectors
_EMOJI = f"(?:Z*[PG]{_IN_EMOJI}F?|M{_IN_EMOJI})"


@cache
def _joined_emoji() -> re.Pattern[str]:
    """Emoji held together by zero-width joiners (over class letters)."""
    # Behind anything but a selector, a modifier belongs to the emoji before it.
    more = f"(?:Z*[PG]{_IN_EMOJI}F?|(?<=FZ)M{_IN_EMOJI})"
    return re.compile(f"{_EMOJI}Z(?:{more}Z)*{more}")


@cache
def _words() -> re.Pattern[str]:
    """Words over class letters; a longer alternative stands before a shorter one that starts alike."""
    letter, hebrew = f"[AGH]{_EXTEND}", f"H{_EXTEND}"
    numeric, katakana, connector = f"N{_EXTEND}", f"K{_EXTEND}", f"U{_EXTEND}"
    mid_letter, mid_number = f"[LBQ]{_EXTEND}", f"[CBQ]{_EXTEND}"
    quoted = f"(?:Q{_EXTEND}|D{_EXTEND}{hebrew})"
    # Possessive (`*+`), for the look-ahead must stand behind all extending characters.
    unquoted = f"(?:[AG]{_EXTEND}|{hebrew}+(?!{quoted}))"
    letters = f"{letter}(?:(?:{connector})*{unquoted}|{mid_letter}{letter})*"
    number = f"{numeric}(?:(?:(?:{connector})*|{mid_number}){numeric})*"
    katakanas = f"{katakana}(?:(?:{connector})*{katakana})*"
    core = f"(?:{katakanas}|(?:{hebrew}{quoted}|{number}|{letters})+)"
    word = f"(?:{connector})*{core}(?:(?:{connector})+{core})*(?:{connector})*"
    keycap, flag = f"#{_IN_EMOJI}F?V{_IN_EMOJI}", f"I{_EXTEND}I{_EXTEND}"
    complex_run, ideograph = f"(?:[XY]{_EXTEND})+", f"S{_EXTEND}"
    return re.compile("|".join([word, _EMOJI, keycap, flag, complex_run, ideograph]))
