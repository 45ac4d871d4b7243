"""What tests of training need: a first stage, and the configuration of a run over the drawings."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import TINY_BASE, TINY_RDM, TINY_SUPER, tiny_first_stage

EXCLUDE = {"same_key": True, "duplicates": True, "same_group": False}


@pytest.fixture(scope="session")
def first_stage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-stage")
    tiny_first_stage().save(folder)
    return folder


@pytest.fixture
def run_values(emoji_like_database: str, first_stage_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A tiny RDM, live neighbours, 12 steps of 8."""
    rows = {"uri": emoji_like_database}
    return {
        "name": "tiny",
        "storage": str(tmp_path / "runs"),
        "output": str(tmp_path / "model"),
        "first_stage": str(first_stage_folder),
        "train_set": rows,
        "neighbors": {"database": rows, "num_neighbors": 2, "pool": {"num_cpus": 0.1}},
        "allow_overlap": True,
        "cache": str(tmp_path / "cache"),
        "model": {**TINY_RDM.model_dump(mode="json"), "context_dim": 64},
        "loop": {
            "steps": 12,
            "batch_size": 8,
            "precision": "fp32",
            "threads": 1,
            "optimizer": {"learning_rate": 2e-3, "warmup": 2},
            "ema": 0.9,
            "log_every": 4,
            "checkpoint_every": 4,
            "samples": 4,
        },
    }


@pytest.fixture
def cascade_values(emoji_like_database: str, tiny_clip: Path, tmp_path: Path) -> dict[str, Any]:
    """Two stages on live neighbours by BM25, 12 steps of 8."""
    rows = {"uri": emoji_like_database}
    loop = {
        "steps": 12,
        "batch_size": 8,
        "precision": "fp32",
        "threads": 1,
        "ema": 0.9,
        "log_every": 4,
        "checkpoint_every": 6,
        "samples": 4,
        "sample_every": 12,
        "optimizer": {"kind": "adam", "learning_rate": 2e-3, "warmup": 2, "weight_decay": 0.0},
    }
    return {
        "name": "tiny",
        "storage": str(tmp_path / "runs"),
        "output": str(tmp_path / "model"),
        "train_set": rows,
        "neighbors": {
            "database": rows,
            "similarity": "bm25",
            "num_neighbors": 2,
            "exclude": EXCLUDE,
            "pool": {"num_cpus": 0.1},
        },
        "text": {"kind": "clip", "encoder": {"model": str(tiny_clip), "precision": "fp32"}},
        "cache": str(tmp_path / "cache"),
        "stages": {
            size: {"model": {**model.model_dump(mode="json"), "text_dim": 32}, "loop": loop}
            for size, model in ((8, TINY_BASE), (16, TINY_SUPER))
        },
    }
