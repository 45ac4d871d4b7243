"""Small text tools that data sets share."""

import html
import re
import unicodedata


def slug_of(text: str) -> str:
    """`man’s shoe` → `mans-shoe`: the characters a-z, 0-9 and '-' only."""
    plain = unicodedata.normalize("NFKD", re.sub("[’'“”.]", "", text).replace("&", " and "))
    return re.sub("[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode().lower()).strip("-")


def words_of(name: str) -> str:
    """`leaningTowerOfPisa` or `polar_bear` → lower-case words."""
    return re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).strip().lower()


def clean_text(text: str) -> str:
    """Without markup, entities and backslash escapes, in one line."""
    plain = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\\n", " ").replace('\\"', '"')
    return re.sub(r"\s+", " ", plain).strip()
