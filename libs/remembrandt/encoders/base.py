"""What every frozen encoder offers, and the fingerprint by which databases recognise it.

Shapes: B batch, D embedding, H W image, C channels.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASS_PROMPT = "An image of a {}."
"""The text for a class, `{}` standing for its name t(c) (P1 §3.3)."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of an encoder: two encoders with equal fingerprints embed alike."""

    architecture: str
    weights_sha256: str
    preprocessing: str

    @property
    def digest(self) -> str:
        """16 hex digits over all three parts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.architecture} [{self.weights_sha256[:12]}, {self.preprocessing}]"


PixelTransform = Callable[[Image.Image], NDArray[np.uint8]]
"""RGB image → pixels (H, W, 3) uint8, resized and cropped as the encoder wants them. Picklable, needs no weights."""


class ImageTextEncoder(Protocol):
    """A frozen joint encoder of images and texts (CLIP). Embeddings are raw (not normalised) float32."""

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def dim(self) -> int:
        """Embedding size D."""

    @property
    def pixel_transform(self) -> PixelTransform:
        """The CPU half of preprocessing, to be run where images are decoded."""

    @property
    def class_prompt(self) -> str:
        """The text for a class, `{}` standing for its name: `CLASS_PROMPT`, or what this encoder knows better."""

    def encode_pixels(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 → raw embeddings (B, D). Any B; an out-of-memory halves the inner batch and goes on."""

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Preprocesses and encodes: B images → raw embeddings (B, D)."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """B texts → raw embeddings (B, D)."""


def normalise(embeddings_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """L2-normalised float32 copy, as search wants it; zero rows stay zero."""
    embeddings = np.asarray(embeddings_ND, dtype=np.float32)
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
