"""The small vocabulary, and the teacher's vectors."""

from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from remembrandt.errors import ConfigError
from remembrandt.training.contrastive.teacher import read_phrases
from remembrandt.training.contrastive.text import principal_axes, project
from remembrandt.training.contrastive.vocabulary import write_vocabulary

WORDS = ["umbrella with rain drops", "see-no-evil monkey", "a lighthouse", "umbrella stand", "rainbow"]


def test_kept_words_are_cut_as_the_full_tokenizer_cuts_them(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt.gz"
    write_vocabulary([(word, 1) for word in WORDS], 120, file)
    small, full = SimpleTokenizer(bpe_path=str(file)), SimpleTokenizer()
    assert small.vocab_size <= 512 + 120 + 2
    for word in WORDS:
        assert [small.decoder[token] for token in small.encode(word)] == [
            full.decoder[token] for token in full.encode(word)
        ]


def test_frequent_words_are_kept_first(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt.gz"
    write_vocabulary([("lighthouse", 50), ("umbrella", 1)], 9, file)
    small = SimpleTokenizer(bpe_path=str(file))
    assert len(small.encode("lighthouse")) < len("lighthouse") / 3
    assert len(small.encode("umbrella")) > 3


def test_vocabulary_files_are_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_vocabulary([(word, 1) for word in WORDS], 100, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_principal_axes_keep_the_teachers_cosines() -> None:
    rng = np.random.default_rng(0)
    vectors_NE = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 40)) + 0.01 * rng.normal(size=(500, 40))
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    reduced_ND = project(vectors_NE, principal_axes(vectors_NE, 8))
    np.testing.assert_allclose(reduced_ND @ reduced_ND.T, vectors_NE @ vectors_NE.T, atol=0.02)


def test_wordnet_gives_lemmas_and_short_glosses(tmp_path: Path) -> None:
    for name in ("data.verb", "data.adj", "data.adv"):
        (tmp_path / name).write_text("  1 licence\n")
    (tmp_path / "data.noun").write_text(
        "  1 This software and database is being provided to you\n"
        "01640550 05 n 03 tree_frog 1 tree-frog 0 Hyla(p) 0 001 @ 01639765 n 0000 | arboreal amphibians; they climb \n"
    )
    assert read_phrases(str(tmp_path)) == ["tree frog", "tree-frog", "Hyla", "arboreal amphibians"]


def test_text_files_give_their_distinct_lines(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("red fox\n\n red fox \nowl\n")
    assert read_phrases(str(file)) == ["red fox", "owl"]


def test_missing_phrases_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_phrases(str(tmp_path / "nowhere"))
