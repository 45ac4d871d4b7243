"""Token states of texts, by each kind of encoder: real networks of random weights, in folders as users have them."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from pydantic import TypeAdapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from remembrandt.encoders.text import TextConfig, TextEncoder, open_text_encoder, text_fingerprint, text_shape
from remembrandt.errors import ConfigError

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "fox", "runs", "over", "there"]


def parsed(**values: object) -> TextConfig:
    config: TextConfig = TypeAdapter(TextConfig).validate_python(values)
    return config


def save_tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    save_tokenizer(folder)
    shape = transformers.T5Config(vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder)
    shape = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(shape).save_pretrained(folder)
    return folder


@pytest.fixture(params=["t5", "minilm", "clip"])
def config(request: pytest.FixtureRequest, t5: Path, bert: Path, tiny_clip: Path) -> TextConfig:
    if request.param == "clip":
        return parsed(kind="clip", encoder={"model": str(tiny_clip), "precision": "fp32"})
    folder = t5 if request.param == "t5" else bert
    return parsed(kind=request.param, model=str(folder), max_tokens=6, precision="fp32")


def test_a_text_has_states_of_its_tokens_and_zeros_elsewhere(config: TextConfig) -> None:
    encoder = open_text_encoder(config)
    assert text_shape(config) == (encoder.dim, encoder.max_tokens)
    texts = ["a red fox", "", "a blue fox", "fox", "  "]
    found = encoder.encode(texts)
    assert found.tokens.shape == (5, encoder.max_tokens, encoder.dim) and found.tokens.dtype == np.float16
    assert not found.mask[[1, 4]].any() and found.mask[[0, 2, 3]].any(axis=1).all()
    assert found.mask[0].sum() == found.mask[2].sum() > found.mask[3].sum()
    assert (found.tokens[~found.mask] == 0).all() and np.isfinite(found.tokens).all()
    assert not np.allclose(found.tokens[0], found.tokens[2], atol=1e-2)
    alone = encoder.encode(texts[3:4])
    assert np.allclose(alone.tokens[0], found.tokens[3], atol=5e-3), "a text does not depend on its batch"


def test_a_long_text_is_cut_and_that_is_said_once(config: TextConfig, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = open_text_encoder(config)
    capsys.readouterr()
    encoder.encode(["a red fox"])
    assert "cut" not in capsys.readouterr().err
    long = encoder.encode(["red fox runs over there " * 20, "a fox"])
    assert long.mask[0].all() and not long.mask[1].all()
    encoder.encode(["blue fox runs over there " * 20])
    assert capsys.readouterr().err.count("are cut") == 1


def test_fingerprints_tell_encoders_apart(t5: Path, bert: Path, tiny_clip: Path) -> None:
    configs = [
        parsed(kind="t5", model=str(t5)),
        parsed(kind="t5", model=str(t5), max_tokens=5),
        parsed(kind="minilm", model=str(bert)),
        parsed(kind="clip", encoder={"model": str(tiny_clip)}),
    ]
    assert len({text_fingerprint(config) for config in configs}) == 4
    assert text_fingerprint(configs[0]) == text_fingerprint(parsed(kind="t5", model=str(t5), device="cpu"))


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_text_encoder(parsed(kind="t5", model="/nowhere/t5"))


@pytest.mark.network
@pytest.mark.slow
def test_minilm_comes_from_a_package() -> None:
    encoder: TextEncoder = open_text_encoder(parsed(kind="minilm"))
    found = encoder.encode(["a red fox", "a crimson fox", "quarterly report"])
    pooled = found.tokens.astype(np.float32).sum(axis=1) / found.mask.sum(axis=1, keepdims=True)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert encoder.dim == 384 and pooled[0] @ pooled[1] > 0.7 > 0.4 > pooled[0] @ pooled[2]
