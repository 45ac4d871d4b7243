"""Image–text pairs of named entities, decoded once, and batches that are a pure function of (seed, step).

Shapes: N pairs, H W image.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remembrandt.data.decode import DecodeConfig, DecodeError, decode_image
from remembrandt.data.records import SourceRecord
from remembrandt.data.sources import open_source
from remembrandt.encoders.pixels import ClipPixelTransform
from remembrandt.errors import SourceError
from remembrandt.progress import Progress, say
from remembrandt.training.contrastive.config import DataConfig

_BLOCK = 1024
TRAIN_MARGIN = 1.25


@dataclass(frozen=True)
class Pair:
    """What is known of one image beside its pixels."""

    key: str
    entity: str
    style: str
    licence: str
    artist: str
    held_out: bool
    captions: tuple[str, ...]


@dataclass(frozen=True)
class PairSet:
    """Decoded pairs.

    Attributes:
        pairs: N.
        train_pixels: (N, 1.25·H, 1.25·W, 3) uint8, memory-mapped; augmentation crops from them.
        pixels: (N, H, W, 3) uint8, memory-mapped; as the finished encoder sees them.
    """

    pairs: tuple[Pair, ...]
    train_pixels: NDArray[np.uint8]
    pixels: NDArray[np.uint8]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Entity → its plain name, the first caption."""
        return {pair.entity: pair.captions[0] for pair in reversed(self.pairs)}


def load_pairs(config: DataConfig, transform: ClipPixelTransform) -> PairSet:
    """Reads and decodes all sources, or maps what an earlier call on this node has left in the cache.

    Raises:
        SourceError: a source without usable pairs.
    """
    sources = [open_source(source) for source in config.sources]
    identity = json.dumps([[source.fingerprint() for source in sources], asdict(transform)])
    folder = Path(config.cache).expanduser() / f"pairs-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not (folder / "pairs.json").is_file():
        _decode_all(config, transform, folder)
    listed = json.loads((folder / "pairs.json").read_text())
    pairs = tuple(Pair(**{**item, "captions": tuple(item["captions"])}) for item in listed)
    return PairSet(pairs, np.load(folder / "train.npy", mmap_mode="r"), np.load(folder / "pixels.npy", mmap_mode="r"))


def trained_on(pair: Pair, config: DataConfig) -> bool:
    """Whether a pair may be trained on: its entity is not held out, its licence is allowed, its style is chosen."""
    return (
        not pair.held_out
        and pair.style != config.unseen_style
        and (not config.styles or pair.style in config.styles)
        and (not config.licences or pair.licence in config.licences)
    )


def _decode_all(config: DataConfig, transform: ClipPixelTransform, folder: Path) -> None:
    """Writes into a folder of its own first, so that several workers of a node may do it at once."""
    height, width = (round(edge * TRAIN_MARGIN) for edge in (transform.height, transform.width))
    larger = replace(transform, height=height, width=width)
    pairs: list[Pair] = []
    train_pixels, pixels = [], []
    for source_config in config.sources:
        source = open_source(source_config)
        blocks = source.blocks(_BLOCK)
        total = sum(block.stop - block.start for block in blocks)
        with Progress(f"decoding {source_config.uri}", total, "images") as progress:
            for record in (record for block in blocks for record in source.read(block)):
                progress.advance()
                image = _decode(record)
                if image is not None:
                    pairs.append(_pair(record))
                    train_pixels.append(larger(image))
                    pixels.append(transform(image))
    if not pairs:
        raise SourceError(f"no pairs of image and caption in {', '.join(source.uri for source in config.sources)}")
    partial = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    partial.mkdir(parents=True)
    np.save(partial / "train.npy", np.stack(train_pixels))
    np.save(partial / "pixels.npy", np.stack(pixels))
    (partial / "pairs.json").write_text(json.dumps([asdict(pair) for pair in pairs]))
    try:
        partial.rename(folder)
    except OSError:
        # Another worker of this node was faster.
        if not (folder / "pairs.json").is_file():
            raise


def _decode(record: SourceRecord) -> Image.Image | None:
    """The image of a record with a caption; what cannot be used is told and left out."""
    problem = record.problem or ("" if record.caption else "it has no caption")
    if not problem and record.image is not None:
        try:
            return decode_image(record.image, DecodeConfig())
        except DecodeError as error:
            problem = str(error)
    say(f"left out {record.key}: {problem or 'it has no image'}")
    return None


def _pair(record: SourceRecord) -> Pair:
    """Without an entity each group, and without a group each record, is an entity of its own."""
    fields = record.fields
    return Pair(
        key=record.key,
        entity=fields.get("entity") or record.group or record.key,
        style=fields.get("style", ""),
        licence=record.licence,
        artist=fields.get("artist", ""),
        held_out=fields.get("split", "") == "held-out",
        captions=tuple(dict.fromkeys((record.caption, *record.captions))),
    )


class BatchPlan:
    """Which images and captions a step sees: a pure function of (seed, step), whatever the number of workers.

    Entities are drawn without replacement within a step; each brings `views` images, of different styles while it has
    them, and the caption of its first one.
    """

    def __init__(self, pairs: Sequence[Pair], config: DataConfig, entities: int, views: int, seed: int) -> None:
        by_entity: dict[str, dict[str, list[int]]] = {}
        for row, pair in enumerate(pairs):
            if trained_on(pair, config):
                by_entity.setdefault(pair.entity, {}).setdefault(pair.style, []).append(row)
        if not by_entity:
            raise SourceError("no pair may be trained on: check data.styles, data.licences and data.unseen_style")
        self.entity_names = sorted(by_entity)
        self._rows = [[by_entity[name][style] for style in sorted(by_entity[name])] for name in self.entity_names]
        self._pairs, self._views, self._seed = pairs, views, seed
        self.batch_entities = min(entities, len(self.entity_names))
        # An entity with more drawings has more to show, but the rare ones must not vanish.
        weights = np.sqrt([sum(map(len, styles)) for styles in self._rows])
        self._weights = weights / weights.sum()

    @property
    def num_rows(self) -> int:
        """Images that may be trained on."""
        return sum(len(rows) for styles in self._rows for rows in styles)

    def draw(self, step: int) -> "Batch":
        """The global batch of a step."""
        rng = np.random.default_rng((self._seed, step))
        chosen = rng.choice(len(self._rows), self.batch_entities, replace=False, p=self._weights)
        rows = np.array([self._draw_views(int(entity), rng) for entity in chosen])
        captions = [vary_caption(self._pairs[row].captions, rng) for row in rows[:, 0]]
        return Batch(chosen.astype(np.int64), rows, captions)

    def _draw_views(self, entity: int, rng: np.random.Generator) -> list[int]:
        styles = self._rows[entity]
        order = rng.permutation(len(styles))
        picked = [styles[order[view % len(styles)]] for view in range(self._views)]
        return [int(rng.choice(rows)) for rows in picked]


@dataclass(frozen=True)
class Batch:
    """A global batch: P entities (indices into the plan's names), their rows (P, views), a caption each."""

    entities_P: NDArray[np.int64]
    rows_PV: NDArray[np.int64]
    captions: list[str]

    def share(self, rank: int, workers: int) -> "Batch":
        """The part of one worker; all parts are equally large if P is a multiple of `workers`."""
        return Batch(self.entities_P[rank::workers], self.rows_PV[rank::workers], self.captions[rank::workers])


def vary_caption(captions: Sequence[str], rng: np.random.Generator) -> str:
    """One text for an image: its name, a caption, or some of a caption's keywords with or without its name."""
    kind = rng.random()
    if kind < 0.4 or len(captions) == 1:
        return captions[0]
    caption = captions[int(rng.integers(1, len(captions)))]
    if kind < 0.6:
        return caption
    words = [word.strip() for word in caption.split(",")][1:] or [caption]
    count = int(rng.integers(1, min(len(words), 5) + 1))
    picked = [words[index] for index in rng.permutation(len(words))[:count]]
    return ", ".join(picked if kind > 0.85 else [captions[0], *picked])
