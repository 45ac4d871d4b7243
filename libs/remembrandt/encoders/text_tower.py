"""CLIP's text tower without the padding of fixed-length texts.

The tower is causal and pools at the end-of-text token, so what follows that token changes nothing. A query has
some 10 tokens, the context 77.

Shapes: N texts, T tokens of a full context, L of a shorter one, W width of the tower, D embedding.
"""

from typing import Final

import open_clip
import torch
from open_clip.transformer import text_global_pool

_LENGTHS: Final = (8, 16, 32, 64)


def is_causal(model: torch.nn.Module) -> bool:
    """Whether the tower is one that texts can be cut for: open_clip's own, with a causal mask and an end token."""
    return (
        isinstance(model, open_clip.CLIP) and model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")
    )


def text_lengths(tokens_NT: torch.Tensor) -> torch.Tensor:
    """Tokens of each text up to its end (N,): the end token has the largest id of a CLIP vocabulary."""
    return tokens_NT.argmax(dim=-1) + 1


def rounded_lengths(tokens_NT: torch.Tensor) -> torch.Tensor:
    """`text_lengths`, rounded up to one of a few (N,): a text is always computed at the same length."""
    steps = torch.tensor([length for length in _LENGTHS if length < tokens_NT.shape[1]] + [tokens_NT.shape[1]])
    return steps[torch.searchsorted(steps, text_lengths(tokens_NT).cpu())]


def encode_text_at(model: open_clip.CLIP, tokens_NL: torch.Tensor) -> torch.Tensor:
    """`model.encode_text` of texts that all end within L tokens: (N, L) int64 → (N, D)."""
    length, dtype = tokens_NL.shape[1], model.transformer.get_cast_dtype()
    x_NLW = model.token_embedding(tokens_NL).to(dtype) + model.positional_embedding[:length].to(dtype)
    x_NLW = model.ln_final(model.transformer(x_NLW, attn_mask=model.attn_mask[:length, :length]))
    eos = getattr(model, "text_eos_id", None)
    x_NW = text_global_pool(x_NLW, tokens_NL, model.text_pool_type, eos_token_id=eos)
    projection = model.text_projection
    if projection is None:
        embeddings_ND: torch.Tensor = x_NW
    elif isinstance(projection, torch.nn.Linear):
        embeddings_ND = projection(x_NW)
    else:
        embeddings_ND = x_NW @ projection
    return embeddings_ND


def encode_text_trimmed(model: open_clip.CLIP, tokens_NT: torch.Tensor) -> torch.Tensor:
    """`encode_text_at` the length of the longest text: (N, T) int64 → (N, D)."""
    return encode_text_at(model, tokens_NT[:, : int(text_lengths(tokens_NT).max())])
