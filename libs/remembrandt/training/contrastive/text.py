"""The text tower in training: started from a teacher.

Shapes: N phrases, W width of the tower, D embedding, E teacher's embedding.
"""

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer


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
