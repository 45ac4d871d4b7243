"""Model folders in diffusers' layout: one subfolder a network, its config.json and safetensors beside each other."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from torch import nn

from remembrandt.errors import ConfigError, CorruptionError

FACTS = "remembrandt.json"
CONFIG = "config.json"
SHIPPED = Path(__file__).with_name("weights")
"""Models that come with the package."""


def save_network(network: nn.Module, folder: Path) -> None:
    """Writes a diffusers network; diffusers' own `from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]


def load_network(folder: Path, **options: Any) -> Any:
    """Opens what `save_network` wrote, as the class that it was.

    Raises:
        ConfigError: no network there.
        CorruptionError: a damaged file.
    """
    config = read_json(folder / CONFIG)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise ConfigError(f"{folder / CONFIG} names no class of diffusers: {config.get('_class_name')!r}")
    try:
        # What is loaded fast is loaded onto the meta device first; small networks are faster without.
        return kind.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True, **options)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptionError(f"{folder} cannot be loaded: {reason}; restore it or train anew") from error


def take_weights(network: nn.Module, folder: Path) -> None:
    """Copies the weights that `save_network` wrote into a network of the same shape.

    Raises:
        ConfigError: no network there, or one of another shape.
    """
    saved = load_network(folder)
    try:
        network.load_state_dict(saved.float().state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{folder} holds a network of another shape than is configured: {reason}") from None


def find_model(name: str | Path) -> Path:
    """A model's folder: the path itself, or that of a model that ships with the package under this name.

    Raises:
        ConfigError: neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    shipped = {folder.name: folder for folder in SHIPPED.iterdir() if folder.is_dir()} if SHIPPED.is_dir() else {}
    if str(name) in shipped:
        return shipped[str(name)]
    hint = f"; shipped models: {', '.join(sorted(shipped))}" if shipped else ""
    raise ConfigError(f"there is no model at {name}: name the folder of a finished one{hint}")


def write_facts(folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """Writes what is known of a model beside its networks."""
    write_json(folder / FACTS, {"kind": kind, **facts})


def read_facts(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads `write_facts`.

    Raises:
        ConfigError: no model of this kind there.
    """
    if not (folder / FACTS).is_file():
        raise ConfigError(f"{folder} holds no finished model ({FACTS} is missing)")
    facts = read_json(folder / FACTS)
    if kind is not None and facts.get("kind") != kind:
        raise ConfigError(f"{folder} holds a model of kind '{facts.get('kind')}', not '{kind}'")
    return facts


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Indented JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
        ConfigError: it is missing.
        CorruptionError: it is no JSON.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: {path.parent} is no model folder") from None
    except (OSError, ValueError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from None
    return values


def half(network: nn.Module) -> nn.Module:
    """fp16 weights, for files half as large."""
    return network.to(torch.float16)
