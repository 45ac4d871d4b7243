"""The text tower in training: without the padding that fixed-length batches carry, and started from a teacher.

Shapes: N phrases, T tokens, W width of the tower, D embedding, E teacher's embedding.
"""

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer


def encode_text_trimmed(model: open_clip.CLIP, tokens_NT: torch.Tensor) -> torch.Tensor:
    """`model.encode_text`, computed only up to the longest text: (N, T) int64 → (N, D).

    The tower is causal and pools at the end-of-text token, so what follows it changes nothing.
    """
    length = int((tokens_NT.argmax(dim=-1).max() + 1).item())
    x_NTW = model.token_embedding(tokens_NT[:, :length]) + model.positional_embedding[:length]
    x_NTW = model.transformer(x_NTW, attn_mask=model.attn_mask[:length, :length])
    x_NW = model.ln_final(x_NTW)[torch.arange(len(tokens_NT)), tokens_NT.argmax(dim=-1)]
    embeddings_ND: torch.Tensor = x_NW @ model.text_projection
    return embeddings_ND


def principal_axes(vectors_NE: NDArray[np.floating], num_axes: int) -> NDArray[np.float32]:
    """The directions (E, num_axes) that keep most of the vectors' inner products; not centred, so cosines survive."""
    vectors = np.asarray(vectors_NE, dtype=np.float32)
    moments_EE = vectors.T @ vectors / len(vectors)
    _, axes_EE = np.linalg.eigh(moments_EE)
    return np.ascontiguousarray(axes_EE[:, ::-1][:, :num_axes]).astype(np.float32)


def project(vectors_NE: NDArray[np.floating], axes_ED: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors (N, D): the teacher's, as far as D axes can say them."""
    projected = np.asarray(vectors_NE, dtype=np.float32) @ axes_ED
    unit_ND: NDArray[np.float32] = projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-6)
    return unit_ND


def token_strings(tokenizer: SimpleTokenizer) -> list[str]:
    """What each token reads, for a teacher to embed."""
    return [tokenizer.decode([index]).strip() or "?" for index in range(len(tokenizer.encoder))]


def start_tokens_from(model: open_clip.CLIP, vectors_VE: NDArray[np.floating], std: float = 0.04) -> None:
    """Sets the token embeddings (V, W) to the teacher's vectors of the tokens' strings, on W principal axes."""
    width = model.token_embedding.weight.shape[1]
    vectors = np.asarray(vectors_VE, dtype=np.float32)
    rows_VW = vectors @ principal_axes(vectors, width)
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.from_numpy(rows_VW * (std / rows_VW.std())))
