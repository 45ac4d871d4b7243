"""A sentence encoder as the teacher of a small text tower: phrases in, unit vectors out.

A contrastive model that sees a few thousand entities learns no words beyond them. A sentence encoder knows how
thousands of other words relate; a text tower that first learns to agree with it starts from that knowledge.

Shapes: N phrases, T tokens, E teacher's embedding.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from remembrandt.errors import ConfigError
from remembrandt.progress import Progress

_WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_MAX_WORDS = 14


def read_phrases(source: str) -> list[str]:
    """Distinct phrases of one source, in order: a text file (one a line), or a WordNet `dict` folder.

    WordNet gives every lemma ('tree frog') and, up to its first semicolon, every gloss ('arboreal amphibians usually
    having adhesive disks at the tip of each toe').

    Raises:
        ConfigError: nothing usable is there.
    """
    path = Path(source)
    if path.is_file():
        phrases = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    elif all((path / name).is_file() for name in _WORDNET_FILES):
        phrases = (phrase for name in _WORDNET_FILES for phrase in _wordnet_phrases(path / name))
    else:
        needed = ", ".join(_WORDNET_FILES)
        raise ConfigError(f"no phrases at {source}: give a text file, or WordNet's dict folder with {needed}")
    found = list(dict.fromkeys(phrase for phrase in phrases if phrase))
    if not found:
        raise ConfigError(f"{source} holds no phrases")
    return found


def _wordnet_phrases(file: Path) -> Iterator[str]:
    """Lemmas and glosses of one data file; its licence stands in lines that begin with blanks."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):
                continue
            entry, _, gloss = line.partition(" | ")
            fields = entry.split(" ")
            num_lemmas = int(fields[3], 16)
            for lemma in fields[4 : 4 + 2 * num_lemmas : 2]:
                yield re.sub(r"\((a|p|ip)\)$", "", lemma).replace("_", " ")
            words = gloss.strip().partition(";")[0].split()
            if 2 <= len(words) <= _MAX_WORDS:
                yield " ".join(words)


def check_teacher(folder: str) -> None:
    """Raises ConfigError unless a sentence encoder's config lies in `folder`."""
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"no sentence encoder at {folder}: give a folder with config.json, tokenizer and weights")


class SentenceTeacher:
    """A frozen sentence-transformers model (mean pooling, unit length) in a local folder."""

    def __init__(self, folder: str, batch_size: int = 128) -> None:
        from transformers import AutoModel, AutoTokenizer

        check_teacher(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self._batch_size = batch_size
        self.dim = int(self._model.config.hidden_size)

    def embed(self, phrases: Sequence[str]) -> NDArray[np.float16]:
        """Phrases → unit vectors (N, E). Sorted by length inside, so that batches carry little padding."""
        order = sorted(range(len(phrases)), key=lambda index: len(phrases[index]))
        out_NE = np.empty((len(phrases), self.dim), dtype=np.float16)
        with Progress("teacher", len(phrases), "phrases", interval=10) as progress:
            for start in range(0, len(order), self._batch_size):
                chosen = order[start : start + self._batch_size]
                out_NE[chosen] = self._embed_batch([phrases[index] for index in chosen])
                progress.advance(len(chosen))
        return out_NE

    def _embed_batch(self, phrases: list[str]) -> NDArray[np.float16]:
        tokens = self._tokenizer(phrases, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            hidden_NTE = self._model(**tokens).last_hidden_state.float()
        mask_NT1 = tokens["attention_mask"].unsqueeze(-1)
        mean_NE = (hidden_NTE * mask_NT1).sum(1) / mask_NT1.sum(1)
        unit_NE: NDArray[np.float16] = torch.nn.functional.normalize(mean_NE, dim=-1).numpy().astype(np.float16)
        return unit_NE


def teacher_embeddings(folder: str, phrases: Sequence[str], cache: Path) -> NDArray[np.float16]:
    """The teacher's vectors (N, E) for `phrases`, computed once and kept in `cache`."""
    digest = hashlib.sha256("\n".join((folder, *phrases)).encode()).hexdigest()[:16]
    file = cache / f"teacher-{digest}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".tmp-{os.getpid()}.npy")
        np.save(partial, SentenceTeacher(folder).embed(phrases))
        partial.replace(file)
    vectors_NE: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return vectors_NE
