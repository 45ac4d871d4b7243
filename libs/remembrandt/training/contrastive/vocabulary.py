"""A small vocabulary out of CLIP's, with the words that a corpus uses.

CLIP's 49k tokens would take more room than the rest of a small model. Most serve names and spellings that a small
corpus never has, so we keep the merges that make its frequent words, and whatever those are made of.
"""

import gzip
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import regex
from open_clip.tokenizer import SimpleTokenizer

FILE_NAME = "bpe_merges.txt.gz"


def write_vocabulary(weighted_phrases: Iterable[tuple[str, int]], num_merges: int, file: Path) -> None:
    """Writes the merges in the format that `SimpleTokenizer(bpe_path=…)` reads.

    Words whose tokens are all kept are cut exactly as CLIP's full tokenizer cuts them.
    """
    tokenizer = SimpleTokenizer()
    kept = _most_useful(_count_tokens(tokenizer, weighted_phrases), tokenizer, num_merges)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in sorted(kept, key=tokenizer.bpe_ranks.__getitem__))]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".tmp-{os.getpid()}")
    # A time stamp inside the archive would give every run another digest.
    partial.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    partial.replace(file)


def _count_tokens(tokenizer: SimpleTokenizer, weighted_phrases: Iterable[tuple[str, int]]) -> Counter[str]:
    words: Counter[str] = Counter()
    for phrase, weight in weighted_phrases:
        for word in regex.findall(tokenizer.pat, phrase.lower()):
            words[word] += weight
    tokens: Counter[str] = Counter()
    for word, weight in words.items():
        spelled = "".join(tokenizer.byte_encoder[byte] for byte in word.encode())
        for token in tokenizer.bpe(spelled).split(" "):
            tokens[token] += weight
    return tokens


def _most_useful(counts: Counter[str], tokenizer: SimpleTokenizer, num_merges: int) -> set[tuple[str, str]]:
    """Merges of the most frequent tokens, each with the merges of its parts, up to `num_merges`."""
    makers: dict[str, tuple[str, str]] = {}
    for merge in tokenizer.bpe_ranks:
        if len(merge) == 2:
            makers.setdefault("".join(merge), merge)
    kept: set[tuple[str, str]] = set()
    for token, _ in counts.most_common():
        needed = _ancestors(token, makers) - kept
        if len(kept) + len(needed) <= num_merges:
            kept |= needed
    return kept


def _ancestors(token: str, makers: dict[str, tuple[str, str]]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    waiting = [token]
    while waiting:
        merge = makers.get(waiting.pop())
        if merge is not None and merge not in found:
            found.add(merge)
            waiting += merge
    return found
