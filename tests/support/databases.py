"""Fixtures: a small published database of drawings, built once a session by the real build.

Heavy imports wait until a fixture is used: every test file reads this one.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.pictures import write_pictures

if TYPE_CHECKING:
    from tests.support.ray_cluster import RayCluster

__all__ = ["build_values", "database_copy", "emoji_like_database", "pictures", "tiny_clip"]

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real open_clip model of random weights, in a folder as a user would have one."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 320 drawings with captions, groups, styles and licences."""
    folder = tmp_path_factory.mktemp("pictures")
    assert write_pictures(folder) == 320
    return folder


@pytest.fixture(scope="session")
def build_values(pictures: Path, tiny_clip: Path) -> dict[str, Any]:
    """Configuration of a build of the drawings; add `uri`."""
    return {
        "source": {"kind": "images", "uri": str(pictures)},
        "encoder": {"model": str(tiny_clip), "precision": "fp32"},
        "workers": {"block_size": 64, "encoders": 1},
        "gate": {"recall_at": 10, "queries": 50},
    }


@pytest.fixture(scope="session")
def emoji_like_database(
    _session_ray_cluster: "RayCluster", build_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """URI of a published database of 320 rows. Do not change it: copy it with `database_copy`."""
    from remembrandt.configuration import parse_config
    from remembrandt.databases.build import build_database
    from remembrandt.databases.config import BuildConfig

    _session_ray_cluster.connect()
    uri = str(tmp_path_factory.mktemp("databases") / "drawings")
    build_database(parse_config(BuildConfig, {**build_values, "uri": uri}, "test"))
    return uri


@pytest.fixture
def database_copy(emoji_like_database: str, tmp_path: Path) -> str:
    """A copy of the database that a test may damage."""
    target = tmp_path / "drawings"
    shutil.copytree(emoji_like_database, target)
    return str(target)
