"""What tests of training need: a first stage, and the configuration of a run over the drawings."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import TINY_RDM, tiny_first_stage


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
