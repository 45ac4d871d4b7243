"""CLIP as a frozen encoder of images and texts, on any model that open_clip loads.

Shapes: B batch, D embedding, H W image, C channels, T text tokens.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors import SafetensorError

from remembrandt.encoders.base import Fingerprint
from remembrandt.encoders.batching import FixedBatches
from remembrandt.encoders.config import EncoderConfig
from remembrandt.encoders.hardware import auto_batch_sizes, choose_device, choose_precision
from remembrandt.encoders.normalisation import PixelNormalisation
from remembrandt.encoders.pixels import ClipPixelTransform
from remembrandt.encoders.resolution import ResolvedModel, resolve
from remembrandt.encoders.text_tower import encode_text_at, is_causal, rounded_lengths, text_lengths
from remembrandt.errors import ConfigError, CorruptionError

Tokenizer = Callable[[Sequence[str]], torch.Tensor]


def open_encoder(config: EncoderConfig) -> "ClipEncoder":
    """Loads the model onto its device, ready to encode.

    Raises:
        ConfigError: unknown model, tag, device or precision; missing files.
        CorruptionError: weights that are damaged or belong to another architecture.
        ServiceError: a download failed.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    resolved = resolve(config)
    return ClipEncoder(_load(resolved, precision, device), resolved, precision, device, config.batch_size)


def fingerprint_of(config: EncoderConfig) -> Fingerprint:
    """The encoder's identity, without building the network: hashes the weights file."""
    return resolve(config).fingerprint


def pixel_transform_of(config: EncoderConfig) -> ClipPixelTransform:
    """The encoder's CPU preprocessing, without building the network."""
    return resolve(config).pixel_transform


class ClipEncoder:
    """Images and texts → raw (not normalised) float32 embeddings of one space.

    Attributes:
        model: the open_clip network, in evaluation mode on `device`.
        precision: fp32, fp16 or bf16: of the weights.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        resolved: ResolvedModel,
        precision: str,
        device: torch.device,
        batch_size: int | str = "auto",
    ) -> None:
        self.model, self.precision, self.device = model, precision, device
        self._resolved = resolved
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        self._normalise = PixelNormalisation(resolved.preprocess.mean, resolved.preprocess.std).to(device)
        self._tokenize = tokenizer_of(resolved)
        image_rows, query_rows = auto_batch_sizes(device) if batch_size == "auto" else (int(batch_size),) * 2
        self.image_batches = FixedBatches(self._forward_pixels, image_rows, device)
        self.image_query_batches = FixedBatches(self._forward_pixels, query_rows, device)
        self.text_batches = FixedBatches(self._forward_tokens, query_rows, device)
        self._trims = is_causal(model)

    @property
    def fingerprint(self) -> Fingerprint:
        return self._resolved.fingerprint

    @property
    def dim(self) -> int:
        return self._resolved.dim

    @property
    def pixel_transform(self) -> ClipPixelTransform:
        return self._resolved.pixel_transform

    @property
    def class_prompt(self) -> str:
        return self._resolved.class_prompt

    def encode_pixels(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The images of a database: (B, H, W, 3) uint8 from `pixel_transform` → raw embeddings (B, D).

        Raises:
            ServiceError: not even one image fits into memory.
        """
        return self._encode_pixels(pixels_BHWC, self.image_batches)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """B images that somebody waits for → raw embeddings (B, D)."""
        if not images:
            return np.empty((0, self.dim), dtype=np.float32)
        transform = self.pixel_transform
        return self._encode_pixels(np.stack([transform(image) for image in images]), self.image_query_batches)

    def _encode_pixels(self, pixels_BHWC: NDArray[np.uint8], batches: FixedBatches) -> NDArray[np.float32]:
        transform = self.pixel_transform
        expected = (transform.height, transform.width, 3)
        assert pixels_BHWC.dtype == np.uint8 and pixels_BHWC.shape[1:] == expected, (
            f"expected uint8 (B, {', '.join(map(str, expected))}), got {pixels_BHWC.dtype} {pixels_BHWC.shape}"
        )
        # torch takes over neither read-only arrays (Arrow's) nor reversed ones.
        owned_BHWC = np.require(pixels_BHWC, requirements=["C", "W"])
        return batches(torch.from_numpy(owned_BHWC), self.dim)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """B texts → raw embeddings (B, D); what exceeds the model's context is cut off."""
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        tokens_BT = self._tokenize(list(texts))
        if not self._trims:
            return self.text_batches(tokens_BT, self.dim)
        lengths_B = rounded_lengths(tokens_BT)
        embeddings_BD = np.empty((len(texts), self.dim), dtype=np.float32)
        for length in lengths_B.unique().tolist():
            own_B = lengths_B == length
            embeddings_BD[own_B.numpy()] = self.text_batches(tokens_BT[own_B, :length], self.dim)
        return embeddings_BD

    @property
    def text_shape(self) -> tuple[int, int]:
        """Size of a token's state in the text tower, and how many tokens a text may have."""
        return self._resolved.text_shape

    def text_states(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The text tower's last states (B, T, width), which tokens there are (B, T), and how many texts were cut."""
        ids_BT = self._tokenize(list(texts)).to(self.device)
        states_BTD = self.model.forward_intermediates(
            text=ids_BT, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )["text_intermediates"][-1]
        lengths_B = text_lengths(ids_BT)
        mask_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] < lengths_B[:, None]
        full = (lengths_B == ids_BT.shape[1]).tolist()
        cut = sum(1 for text, whole in zip(texts, full, strict=True) if whole and self._exceeds(text))
        return states_BTD, mask_BT, cut

    def _exceeds(self, text: str) -> bool:
        encode = getattr(self._tokenize, "encode", None)
        return True if encode is None else len(encode(text)) + 2 > self.text_shape[1]

    def _forward_tokens(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        embeddings_BD: torch.Tensor = (
            encode_text_at(self.model, tokens_BL) if self._trims else self.model.encode_text(tokens_BL)
        )
        return embeddings_BD

    def _forward_pixels(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        embeddings_BD: torch.Tensor = self.model.encode_image(self._normalise(pixels_BHWC).to(self._dtype))
        return embeddings_BD


def tokenizer_of(resolved: ResolvedModel) -> Tokenizer:
    """Texts → token ids (B, T) int64, with the vocabulary that the model was trained on."""
    if resolved.vocabulary is None:
        tokenizer: Tokenizer = open_clip.get_tokenizer(resolved.identifier)
        return tokenizer
    text_config = resolved.model_config["text_cfg"]
    options = dict(text_config.get("tokenizer_kwargs", {}), bpe_path=str(resolved.vocabulary))
    own: Tokenizer = SimpleTokenizer(context_length=text_config.get("context_length", 77), **options)
    return own


def _load(resolved: ResolvedModel, precision: str, device: torch.device) -> open_clip.CLIP:
    given_path = ":" not in resolved.identifier
    try:
        with warnings.catch_warnings(), _quiet_root_logger():
            warnings.simplefilter("ignore", UserWarning)
            model = open_clip.create_model(
                resolved.identifier,
                pretrained=str(resolved.weights) if given_path else None,
                precision=precision,
                device=device,
                pretrained_text=False,
            )
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise CorruptionError(
            f"{resolved.weights} is damaged: {_first_line(error)}; restore or download it again"
        ) from error
    except AssertionError as error:
        raise CorruptionError(f"{resolved.weights} does not fit the architecture '{resolved.name}': {error}") from error
    except RuntimeError as error:
        raise _explained(resolved, device, error) from error
    return model.eval().requires_grad_(False)


def _explained(resolved: ResolvedModel, device: torch.device, error: RuntimeError) -> Exception:
    text = str(error)
    if "Error(s) in loading state_dict" in text:
        return CorruptionError(
            f"{resolved.weights} does not fit the architecture '{resolved.name}': {_first_line(error)}"
        )
    if "PytorchStreamReader" in text or "zip archive" in text:
        return CorruptionError(f"{resolved.weights} is damaged: {_first_line(error)}; restore or download it again")
    if "CUDA" in text or "HIP" in text:
        return ConfigError(f"cannot use device '{device}': {_first_line(error)}")
    return error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """open_clip tells its steps on the root logger, which prints warnings that mean nothing to our users."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
