"""Model folders in diffusers' layout: one subfolder a network, its config.json and safetensors beside each other."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from remembrandt.errors import ConfigError, CorruptionError

FACTS = "remembrandt.json"
OWN_FIRST_STAGE = "first_stage"
SHARED_FIRST_STAGE = "shared_first_stage"
"""A model's folder has its first stage as a subfolder, or names a shipped one among its facts."""
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


def moved(network: nn.Module, device: str | torch.device, dtype: torch.dtype) -> Any:
    """The network on a device and in a precision, without the warning of diffusers' own `to`.

    That names the modules which had to stay in float32, also where there are none.
    """
    nn.Module.to(network, device, dtype)
    return network


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


def pack_model(source: Path, target: Path, *, first_stage: str | None = None) -> int:
    """Copies a model with fp16 weights; returns the bytes written.

    Args:
        target: a new folder.
        first_stage: name of a shipped first stage to refer to, instead of a copy of the model's own.

    Raises:
        ConfigError: `target` exists, or the shipped first stage is another one.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already: name a new folder")
    skipped = source / OWN_FIRST_STAGE if first_stage is not None else None
    if skipped is not None and first_stage is not None:
        _check_same(load_network(skipped), load_network(find_model(first_stage)), first_stage)
    written = 0
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        if skipped is not None and path.is_relative_to(skipped):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            weights = {n: w.half() if w.is_floating_point() else w for n, w in load_file(path).items()}
            save_file(weights, copy, metadata={"format": "pt"})
        else:
            shutil.copyfile(path, copy)
        written += copy.stat().st_size
    if first_stage is not None:
        write_json(target / FACTS, {**read_json(target / FACTS), SHARED_FIRST_STAGE: first_stage})
    return written


def _check_same(own: nn.Module, shipped: nn.Module, name: str) -> None:
    theirs = shipped.state_dict()
    for key, weight in own.state_dict().items():
        if key not in theirs or not torch.equal(weight.half(), theirs[key].half()):
            raise ConfigError(f"the model's first stage is not '{name}': pack it with its own, or ship that one first")
