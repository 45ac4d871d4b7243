"""Recall of a contrastive model on what it has not seen: new styles, new entities, both.

Shapes: Q queries, N gallery rows, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from remembrandt.encoders.normalisation import PixelNormalisation
from remembrandt.encoders.text_tower import encode_text_trimmed
from remembrandt.training.contrastive.config import DataConfig
from remembrandt.training.contrastive.data import Pair, PairSet

Tokenize = Callable[[Sequence[str]], torch.Tensor]
KS = (1, 5, 10)
_ROWS = 256


@dataclass(frozen=True)
class Embedded:
    """Unit vectors (N, D) and the entity of each."""

    vectors_ND: torch.Tensor
    entities: NDArray[np.str_]

    def where(self, mask_N: NDArray[np.bool_]) -> "Embedded":
        return Embedded(self.vectors_ND[torch.from_numpy(mask_N)], self.entities[mask_N])


def recall(queries: Embedded, gallery: Embedded) -> dict[str, float | int]:
    """Share of queries with a row of their entity among the first k, and the sizes."""
    hits = dict.fromkeys(KS, 0)
    for vectors_QD, entities in _batches(queries):
        depth = min(max(KS), len(gallery.entities))
        order_QK = (vectors_QD @ gallery.vectors_ND.T).topk(depth, dim=1).indices.numpy()
        same_QK = gallery.entities[order_QK] == entities[:, None]
        for k in KS:
            hits[k] += int(same_QK[:, :k].any(axis=1).sum())
    count = len(queries.entities)
    sizes = {"queries": count, "gallery": len(gallery.entities)}
    return {f"recall@{k}": round(hits[k] / max(count, 1), 4) for k in KS} | sizes


def evaluate(
    model: open_clip.CLIP,
    tokenize: Tokenize,
    normalise: PixelNormalisation,
    pairs: PairSet,
    config: DataConfig,
) -> dict[str, Any]:
    """The report of a model in evaluation mode; keys say who is searched for, where, and among what.

    `known`: entities trained on; `new`: held-out ones. `unseen_style`: the style never trained on; `seen_styles`: those
    trained on. Text queries are plain names. `among_all` galleries hold known entities too, as a database would.
    """
    images = Embedded(_embed_images(model, normalise, pairs.pixels), np.array([pair.entity for pair in pairs.pairs]))
    names = sorted(pairs.labels)
    texts = Embedded(_embed_texts(model, tokenize, [pairs.labels[name] for name in names]), np.array(names))
    unseen, seen = _mask(pairs, lambda pair: pair.style == config.unseen_style), _mask(pairs, _is_seen(config))
    new = _mask(pairs, lambda pair: pair.held_out)
    sets = {
        "known/unseen_style": (unseen & ~new, unseen & ~new),
        "new/seen_styles": (seen & new, seen & new),
        "new/seen_styles/among_all": (seen & new, seen),
        "new/unseen_style": (unseen & new, unseen & new),
        "new/unseen_style/among_all": (unseen & new, unseen),
    }
    report: dict[str, Any] = {"text_to_image": {}, "image_to_text": {}, "image_to_image": {}}
    for name, (wanted, gallery) in sets.items():
        if wanted.any():
            named = texts.where(np.isin(texts.entities, images.entities[wanted]))
            report["text_to_image"][name] = recall(named, images.where(gallery))
            among = texts if name.endswith("among_all") else named
            report["image_to_text"][name] = recall(images.where(wanted), among)
    for name, wanted in {"known": unseen & ~new, "new": unseen & new}.items():
        if wanted.any() and seen.any():
            partnered = wanted & np.isin(images.entities, images.entities[seen])
            found = recall(images.where(partnered), images.where(seen))
            report["image_to_image"][f"{name}/unseen_style_in_seen_styles"] = found
    return report


def summary(report: dict[str, Any]) -> str:
    """Recall@10 of each part, in one line."""
    parts = [
        f"{direction.replace('_to_', '→')} {name} {values['recall@10']:.3f}"
        for direction, sets in report.items()
        for name, values in sets.items()
    ]
    return "; ".join(parts)


def _is_seen(config: DataConfig) -> Callable[[Pair], bool]:
    return lambda pair: pair.style != config.unseen_style and (not config.styles or pair.style in config.styles)


def _mask(pairs: PairSet, test: Callable[[Pair], bool]) -> NDArray[np.bool_]:
    return np.array([test(pair) for pair in pairs.pairs])


def _batches(embedded: Embedded) -> list[tuple[torch.Tensor, NDArray[np.str_]]]:
    starts = range(0, len(embedded.entities), _ROWS)
    return [(embedded.vectors_ND[start : start + _ROWS], embedded.entities[start : start + _ROWS]) for start in starts]


def _embed_images(model: open_clip.CLIP, normalise: PixelNormalisation, pixels_NHWC: NDArray[np.uint8]) -> torch.Tensor:
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels_NHWC), _ROWS):
            x_BHWC = torch.from_numpy(np.array(pixels_NHWC[start : start + _ROWS])).to(device)
            parts.append(F.normalize(model.encode_image(normalise(x_BHWC)).float(), dim=-1).cpu())
    return torch.cat(parts)


def _embed_texts(model: open_clip.CLIP, tokenize: Tokenize, texts: Sequence[str]) -> torch.Tensor:
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), _ROWS):
            tokens_BT = tokenize(list(texts[start : start + _ROWS])).to(device)
            parts.append(F.normalize(encode_text_trimmed(model, tokens_BT).float(), dim=-1).cpu())
    return torch.cat(parts)
