"""A text tower that is computed up to a text's end says what the padded one says."""

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from remembrandt.encoders.text_tower import encode_text_at, encode_text_trimmed, is_causal, rounded_lengths

TEXTS = ["umbrella with rain drops", "see-no-evil monkey", "a lighthouse", "rainbow", "", "long " * 40]
CONTEXT = 24


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        text_cfg={"context_length": CONTEXT, "width": 32, "heads": 2, "layers": 2},
    ).eval()


@torch.inference_mode()
def test_trimmed_texts_embed_as_padded_ones(model: CLIP) -> None:
    tokens_NT = SimpleTokenizer(context_length=CONTEXT)(TEXTS)
    for rows in (tokens_NT, tokens_NT[:1], tokens_NT[3:4]):
        torch.testing.assert_close(encode_text_trimmed(model, rows), model.encode_text(rows), rtol=1e-4, atol=1e-5)
    del model.text_projection
    for projection in (torch.nn.Linear(32, 16), None):
        model.text_projection = projection
        expected_ND = model.encode_text(tokens_NT)
        torch.testing.assert_close(encode_text_trimmed(model, tokens_NT), expected_ND, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_lengths_are_rounded_by_each_text_alone(model: CLIP) -> None:
    tokens_NT = SimpleTokenizer(context_length=CONTEXT)(TEXTS)
    lengths = rounded_lengths(tokens_NT).tolist()
    assert lengths == [rounded_lengths(row[None]).item() for row in tokens_NT]
    assert lengths[4] == 8 and lengths[5] == CONTEXT and set(lengths) <= {8, 16, CONTEXT}
    for row, length in zip(tokens_NT, lengths, strict=True):
        whole = model.encode_text(row[None])
        torch.testing.assert_close(encode_text_at(model, row[None, :length]), whole, rtol=1e-4, atol=1e-5)


def test_only_a_causal_tower_is_cut(model: CLIP) -> None:
    assert is_causal(model)
    model.attn_mask = None
    assert not is_causal(model) and not is_causal(torch.nn.Linear(2, 2))
