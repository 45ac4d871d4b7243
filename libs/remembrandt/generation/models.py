"""Finished models by name, wherever they lie, and where their networks go."""

import hashlib
from pathlib import Path

import torch

from remembrandt.models.folders import find_model
from remembrandt.storage.folders import local_folder


def model_folder(name: str | Path) -> Path:
    """A model's folder on this machine: a path, the name of a shipped model, or `s3://…`, of which a copy is made.

    Raises:
        ConfigError: there is none.
        StorageError: it cannot be read.
    """
    return find_model(local_folder(name))


def best_device() -> str:
    """Where networks go: `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_fingerprint(name: str | Path) -> str:
    """SHA-256 over all files of a model's folder: other weights under the same name are another model."""
    root, whole = model_folder(name), hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return whole.hexdigest()
