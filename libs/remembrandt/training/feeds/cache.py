"""Arrays of every example of a train set, computed once: pixels, latents of a first stage, or token states of captions.

```
<uri>/<identity>/00000012.npy        rows 12·1024 … of the train set, beside commit markers
```
A folder is keyed by everything that its content depends on. It is filled by Ray tasks, one block each; a killed pass
goes on with the blocks that are missing. Reading maps the files into memory.

Letters in names: B examples, N examples in all.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from remembrandt.databases.cache import local_file
from remembrandt.databases.manifest import digest
from remembrandt.distributed import connect, num_gpus, run_tasks
from remembrandt.encoders.text import TextConfig, TextEncoder, open_text_encoder, text_fingerprint
from remembrandt.generation.models import best_device, model_folder
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.progress import Progress
from remembrandt.storage import Store, open_store
from remembrandt.storage.ledger import Ledger, Marker, describe_file
from remembrandt.training.feeds.train_set import RowsConfig, TrainSet

BLOCK = 1024
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class CacheConfig:
    """What is kept of each example.

    Attributes:
        uri: folder of all caches.
        size: edge of the pictures.
        first_stage: folder of the first stage whose latents are kept.
        text: encoder whose states of the caption's tokens are kept, (L, D) float16, zeros where there is no token.
            With neither, uint8 pixels are kept.
    """

    uri: str
    train_set: RowsConfig
    size: int
    first_stage: str | None = None
    text: TextConfig | None = None

    @property
    def kind(self) -> str:
        """What is kept."""
        return "latents" if self.first_stage else "tokens" if self.text else "pixels"

    def store(self, train_set: TrainSet) -> Store:
        """Where this cache lies."""
        parts = [train_set.identity, self.size, first_stage_fingerprint(self.first_stage) if self.first_stage else ""]
        if self.text is not None:
            parts.append(text_fingerprint(self.text))
        return open_store(self.uri).child(f"{self.kind}-{digest(json.dumps(parts).encode())[:16]}")


def fill_cache(config: CacheConfig, train_set: TrainSet) -> None:
    """Computes the blocks that are missing, over the cluster."""
    store = config.store(train_set)
    store.check_writable()
    numbers = range(-(-len(train_set) // BLOCK))
    missing = Ledger(store, "markers").missing(numbers)
    if not missing:
        return
    connect()
    what = {"latents": "encoding latents", "tokens": "encoding captions", "pixels": "decoding pixels"}[config.kind]
    done = len(train_set) - sum(len(_block(number, len(train_set))) for number in missing)
    gpus = 1 if config.kind != "pixels" and num_gpus() else 0
    with Progress(what, len(train_set), "images", done=done) as progress:
        for _, count in run_tasks(_fill_block, [(config, number) for number in missing], num_gpus=gpus, num_cpus=0.5):
            progress.advance(count)


class ExampleCache:
    """A filled cache, mapped into memory. Thread-safe."""

    def __init__(self, parts: Sequence[NDArray[np.generic]]) -> None:
        self._parts = parts

    @classmethod
    def open(cls, config: CacheConfig, train_set: TrainSet) -> Self:
        """Maps the files, which `fill_cache` has written; files of a remote store are copied to this machine first."""
        store = config.store(train_set)
        markers = sorted(Ledger(store, "markers").committed().items())
        return cls([np.load(local_file(store, file), mmap_mode="r") for _, m in markers for file in m.files])

    def take(self, indices_B: NDArray[np.int64]) -> torch.Tensor:
        """(B, …) of the examples, in the order asked."""
        blocks_B, places_B = np.divmod(indices_B, BLOCK)
        out = np.empty((len(indices_B), *self._parts[0].shape[1:]), dtype=self._parts[0].dtype)
        for block in np.unique(blocks_B):
            here = blocks_B == block
            out[here] = self._parts[block][places_B[here]]
        return torch.from_numpy(out)


def first_stage_fingerprint(folder: str) -> str:
    """16 hex digits over a first stage's configuration and weights."""
    files = sorted(path for path in model_folder(folder).iterdir() if path.suffix in (".json", ".safetensors"))
    return digest(b"".join(digest(path.read_bytes()).encode() for path in files))[:16]


def _block(number: int, total: int) -> range:
    return range(number * BLOCK, min((number + 1) * BLOCK, total))


def _fill_block(config: CacheConfig, number: int) -> int:
    train_set = TrainSet.open(config.train_set)
    indices_B = np.array(_block(number, len(train_set)))
    store, name = config.store(train_set), f"{number:08d}.npy"
    data = io.BytesIO()
    np.save(data, _values(config, train_set, indices_B))
    store.write(name, data.getvalue())
    Ledger(store, "markers").commit(Marker(number, (describe_file(store, name),), {"examples": len(indices_B)}))
    return len(indices_B)


def _values(config: CacheConfig, train_set: TrainSet, indices_B: NDArray[np.int64]) -> NDArray[np.generic]:
    if config.text is not None:
        return _text_encoder(config.text.model_dump_json()).encode(train_set.captions(indices_B)).tokens
    pixels_BHWC = train_set.pixels(indices_B, config.size)
    return pixels_BHWC if config.first_stage is None else encode(config.first_stage, pixels_BHWC)


@lru_cache(maxsize=1)
def _text_encoder(config: str) -> TextEncoder:
    """A worker encodes many blocks: it loads the network once."""
    parsed: TextConfig = TypeAdapter(TextConfig).validate_json(config)
    return open_text_encoder(parsed)


def encode(first_stage: str, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents (B, C, H, W) × scale."""
    stage = FirstStage.load(model_folder(first_stage)).to(best_device())
    parts = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).split(_ENCODED_AT_ONCE)
    return torch.cat([stage.encode(part.float() / 255).cpu() for part in parts]).numpy()
