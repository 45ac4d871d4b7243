"""How fast this machine does the steps of a build, remembered from one run to the next."""

import json
import os
import platform
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from remembrandt.distributed import num_cores
from remembrandt.errors import StorageError
from remembrandt.storage.folders import cache_folder


@dataclass(frozen=True)
class EncoderRate:
    """Speed of one encoder on this machine.

    Attributes:
        images_per_second: forward passes on one core, or on one GPU.
        start_seconds: to load the weights.
        dim: embedding size D.
        on_gpu: whether it ran on a GPU.
    """

    images_per_second: float
    start_seconds: float
    dim: int
    on_gpu: bool


@dataclass(frozen=True)
class Rates:
    """Speeds of one core, unless said otherwise.

    Attributes:
        hardware: the machine they were measured on.
        measured_at: date, `2026-11-24`.
        decode_per_second: 256 × 256 JPEG images decoded and preprocessed.
        row_bytes_per_second: into the row store.
        read_bytes_per_second: embeddings out of the row store.
        flops: float32 operations a second in matrix products.
        code_values_per_second: values (rows × dimensions) encoded, by codec: Flat, SQfp16, SQ8, PQ.
        graph_values_per_second: values of vectors whose nearest of 16,384 centroids is found by a graph.
        pq_pairs_per_second: (point, centroid) pairs in training code books.
        scan_bytes_per_second: of inverted lists, in search.
        documents_per_second: into the embedded BM25 index.
        document_bytes: of the embedded BM25 index, per document.
        encoders: by model name.
    """

    hardware: str
    measured_at: str
    decode_per_second: float
    row_bytes_per_second: float
    read_bytes_per_second: float
    flops: float
    code_values_per_second: Mapping[str, float]
    graph_values_per_second: float
    pq_pairs_per_second: float
    scan_bytes_per_second: float
    documents_per_second: float
    document_bytes: float
    encoders: Mapping[str, EncoderRate]

    def with_encoder(self, model: str, rate: EncoderRate) -> "Rates":
        """The same with one more encoder."""
        return replace(self, encoders={**self.encoders, model: rate})


def rates_path() -> Path:
    """Where rates are kept."""
    return cache_folder() / "rates.json"


def hardware() -> str:
    """Processor model, cores this process may use, and GPUs: rates of other hardware do not count."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    model = names[0] if names else platform.processor() or platform.machine()
    gpus = ""
    try:
        import torch

        if torch.cuda.is_available():
            gpus = f", {torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    except ImportError:
        gpus = ""
    return f"{model}, {num_cores()} cores{gpus}"


def load_rates(path: Path | None = None) -> Rates | None:
    """Rates measured on this hardware, or None: never measured, elsewhere, or by another release."""
    try:
        values: dict[str, Any] = json.loads((path or rates_path()).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if set(values) != {field.name for field in fields(Rates)} or values["hardware"] != hardware():
        return None
    encoders = {model: EncoderRate(**rate) for model, rate in values.pop("encoders").items()}
    return Rates(**values, encoders=encoders)


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Writes rates in one step; returns where.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    target = path or rates_path()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(rates), indent=2), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror}; set REMEMBRANDT_CACHE to a writeable folder"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return target


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
