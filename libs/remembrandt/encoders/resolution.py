"""From the name of a model to its files: model config, preprocessing config, weights, vocabulary.

Nothing here builds a network, so that a driver can name an encoder (its fingerprint, its pixel transform) cheaply.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from remembrandt.configuration import nearest
from remembrandt.encoders.base import CLASS_PROMPT, Fingerprint
from remembrandt.encoders.config import EncoderConfig
from remembrandt.encoders.pixels import ClipPixelTransform
from remembrandt.errors import ConfigError, CorruptionError, ServiceError

CONFIG_FILE = "open_clip_config.json"
HUB_PREFIX = "hf-hub:"
_SHIPPED = Path(__file__).parent / "weights"
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_LOADER_ONLY_KEYS = ("timm_model_pretrained", "hf_model_pretrained", "output_tokens", "tokenizer_kwargs")


@dataclass(frozen=True)
class ResolvedModel:
    """Everything that defines an encoder, found but not loaded.

    Attributes:
        name: what the user asked for, for messages.
        identifier: what open_clip's factory and tokenizer functions understand (`ViT-B-32`, `local-dir:…`, `hf-hub:…`).
        model_config: open_clip's `model_cfg`.
        preprocess: open_clip's preprocessing, with the final image size.
        weights: checkpoint file on this machine.
        vocabulary: BPE merges that come with the model, or None for the tokenizer that open_clip chooses.
        class_prompt: the text for a class, `{}` standing for its name; a folder's config may say what its encoder knows
            better than P1's.
    """

    name: str
    identifier: str
    model_config: dict[str, Any]
    preprocess: PreprocessCfg
    weights: Path
    vocabulary: Path | None
    class_prompt: str = CLASS_PROMPT

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for equal networks, weights and preprocessing, under whatever name they were opened."""
        digest = _sha256_once(self.weights, *_identity(self.weights))
        return Fingerprint(_architecture(self.model_config, self.vocabulary), digest, _preprocessing(self.preprocess))

    @property
    def dim(self) -> int:
        """Embedding size D."""
        return int(self.model_config["embed_dim"])

    @property
    def text_shape(self) -> tuple[int, int]:
        """Size of a token's state in the text tower, and how many tokens a text may have."""
        text = self.model_config["text_cfg"]
        return int(text.get("width", 512)), int(text.get("context_length", 77))

    @property
    def pixel_transform(self) -> ClipPixelTransform:
        """The model's resize and crop, without its weights."""
        return transform_of(self.preprocess)


def resolve(config: EncoderConfig) -> ResolvedModel:
    """Finds the files of a model; weights of tags and hub names are downloaded into the usual cache if absent.

    Raises:
        ConfigError: unknown name or tag (the nearest is named), no weights given, missing file.
        ServiceError: a download failed.
        CorruptionError: a config file that is not JSON.
    """
    shipped = _SHIPPED / config.model
    if config.model.startswith(HUB_PREFIX):
        _refuse_pretrained(config)
        return _resolve_hub(config.model)
    if (shipped / CONFIG_FILE).is_file():
        _refuse_pretrained(config)
        return _resolve_folder(config.model, shipped)
    if Path(config.model).is_dir():
        _refuse_pretrained(config)
        return _resolve_folder(config.model, Path(config.model))
    return _resolve_architecture(config.model, config.pretrained)


def _resolve_folder(name: str, folder: Path) -> ResolvedModel:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {CONFIG_FILE}: give the folder of an open_clip model, or a model's name")
    values = _read_json(file)
    if "model_cfg" not in values:
        raise CorruptionError(f"{file} has no 'model_cfg': it is not the config of an open_clip model")
    weights: str | None = _find_checkpoint_in_dir(folder)
    if weights is None:
        raise ConfigError(f"{folder} holds no weights: put open_clip_model.safetensors beside {CONFIG_FILE}")
    class_prompt = str(values.get("class_prompt", CLASS_PROMPT))
    if "{}" not in class_prompt:
        raise ConfigError(f"{file}: class_prompt {class_prompt!r} has no {{}} where the name of the class goes")
    return ResolvedModel(
        name=name,
        identifier=f"local-dir:{folder}",
        model_config=values["model_cfg"],
        preprocess=preprocess_of(values["model_cfg"], values.get("preprocess_cfg", {})),
        weights=Path(weights),
        vocabulary=_vocabulary(values["model_cfg"], folder),
        class_prompt=class_prompt,
    )


def _resolve_hub(name: str) -> ResolvedModel:
    repository = name.removeprefix(HUB_PREFIX)
    try:
        values = _read_json(Path(download_pretrained_from_hf(repository, filename=CONFIG_FILE)))
        weights = Path(download_pretrained_from_hf(repository))
    except CorruptionError:
        raise
    except Exception as error:
        raise _download_error(name, error) from error
    preprocess = preprocess_of(values["model_cfg"], values.get("preprocess_cfg", {}))
    return ResolvedModel(name, name, values["model_cfg"], preprocess, weights, None)


def _resolve_architecture(name: str, pretrained: str | None) -> ResolvedModel:
    cleaned = name.replace("/", "-")
    model_config = open_clip.get_model_config(cleaned)
    if model_config is None:
        raise ConfigError(f"unknown encoder model '{name}': {_suggestion(name)}")
    tags = open_clip.list_pretrained_tags_by_model(cleaned)
    if pretrained is None:
        raise ConfigError(
            f"'{name}' is an architecture without weights: set 'pretrained' to a checkpoint file{_or_tag(tags)}"
        )
    tag_config = open_clip.get_pretrained_cfg(cleaned, pretrained)
    if tag_config:
        weights = _download_tag(name, pretrained, tag_config)
        preprocess = preprocess_of(model_config, tag_config)
    elif Path(pretrained).is_file():
        weights, preprocess = Path(pretrained), preprocess_of(model_config, {})
    elif Path(pretrained).suffix in _WEIGHT_SUFFIXES or os.sep in pretrained:
        raise ConfigError(f"no checkpoint file at {pretrained}: check 'pretrained' of encoder '{name}'")
    else:
        raise ConfigError(
            f"'{pretrained}' is no pretrained tag of '{name}': {nearest(pretrained, tags) if tags else 'it has none'}"
        )
    return ResolvedModel(name, cleaned, model_config, preprocess, weights, None)


def _download_tag(name: str, tag: str, tag_config: dict[str, Any]) -> Path:
    try:
        return Path(download_pretrained(tag_config))
    except Exception as error:
        raise _download_error(f"{name} / {tag}", error) from error


def _download_error(what: str, error: Exception) -> ServiceError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ServiceError(
        f"cannot download weights of {what}: {reason}; check the network, or give a local folder or checkpoint"
    )


def _refuse_pretrained(config: EncoderConfig) -> None:
    if config.pretrained is not None:
        raise ConfigError(f"'{config.model}' brings its own weights: remove 'pretrained' ({config.pretrained!r})")


def _or_tag(tags: Sequence[str]) -> str:
    return f" or to one of its tags: {', '.join(tags)}" if tags else ""


def _suggestion(name: str) -> str:
    """The nearest known name, or what a name may be."""
    hint = nearest(name, [*_shipped_names(), *open_clip.list_models()])
    if hint.startswith("did you mean"):
        return hint
    return f"use mini-clip, an architecture such as ViT-B-32, a folder with {CONFIG_FILE}, or hf-hub:organisation/name"


def _shipped_names() -> list[str]:
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{CONFIG_FILE}"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise CorruptionError(f"{file} is not valid JSON: restore it from where the model came from") from None
    return dict(values)


def _vocabulary(model_config: dict[str, Any], folder: Path) -> Path | None:
    """BPE merges named in the config, relative to the model's folder."""
    named = (model_config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if named is None:
        return None
    file = folder / str(named)
    if not file.is_file():
        raise ConfigError(f"{folder / CONFIG_FILE} names the vocabulary '{named}', which is not in that folder")
    return file


def preprocess_of(model_config: dict[str, Any], overlay: dict[str, Any]) -> PreprocessCfg:
    """open_clip's rule: defaults, then the model's own values; the image size is always the vision tower's."""
    values = merge_preprocess_dict(PreprocessCfg(), overlay)
    values["size"] = CLIPVisionCfg(**model_config["vision_cfg"]).image_size
    return PreprocessCfg(**values)


def transform_of(preprocess: PreprocessCfg) -> ClipPixelTransform:
    """The resize and crop that open_clip's preprocessing config describes."""
    height, width = _size_pair(preprocess.size)
    return ClipPixelTransform(height, width, preprocess.resize_mode, preprocess.interpolation, preprocess.fill_color)


def _size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _architecture(model_config: dict[str, Any], vocabulary: Path | None) -> str:
    """A readable summary and a digest of the config, in which spelled defaults change nothing."""
    vision, text = CLIPVisionCfg(**model_config["vision_cfg"]), CLIPTextCfg(**model_config["text_cfg"])
    canonical = {key: value for key, value in model_config.items() if key not in ("vision_cfg", "text_cfg")}
    canonical |= {"vision_cfg": _without_defaults(vision), "text_cfg": _without_defaults(text)}
    if vocabulary is not None:
        canonical["vocabulary"] = _sha256_once(vocabulary, *_identity(vocabulary))
    digest = hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]
    text_tower = text.hf_model_name or f"{text.width}x{text.layers}"
    return f"{_vision_tower(vision)} + text {text_tower} -> {model_config['embed_dim']} #{digest}"


def _vision_tower(vision: CLIPVisionCfg) -> str:
    if vision.timm_model_name:
        return str(vision.timm_model_name)
    if isinstance(vision.layers, list | tuple):
        return f"resnet {vision.width}x{'-'.join(map(str, vision.layers))}"
    return f"vit {vision.width}x{vision.layers}/{vision.patch_size}"


def _without_defaults(config: CLIPVisionCfg | CLIPTextCfg) -> dict[str, Any]:
    default = type(config)()
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _LOADER_ONLY_KEYS and getattr(config, field.name) != getattr(default, field.name)
    }


def _preprocessing(preprocess: PreprocessCfg) -> str:
    height, width = _size_pair(preprocess.size)
    mean, std = (",".join(f"{value:.6g}" for value in values) for values in (preprocess.mean, preprocess.std))
    fill = f" fill {preprocess.fill_color}" if preprocess.resize_mode == "longest" else ""
    return f"{height}x{width} {preprocess.resize_mode} {preprocess.interpolation}{fill} mean {mean} std {std}"


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=32)
def _sha256_once(file: Path, size: int, modified_ns: int) -> str:
    """Digest of a file, read once a process for as long as its size and time stamp stay."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
