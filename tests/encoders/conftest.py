"""Tiny but real open_clip models, saved as a user would have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

TINY_VIT: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_RESNET: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

SaveModel = Callable[..., Path]


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Saves a randomly initialised model as an open_clip folder and returns the folder."""

    def save(model_config: dict[str, Any], seed: int = 0, **preprocess: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    return save


@pytest.fixture(scope="session")
def vit_folder(save_model: SaveModel) -> Path:
    return save_model(TINY_VIT)


@pytest.fixture(scope="session")
def resnet_folder(save_model: SaveModel) -> Path:
    return save_model(TINY_RESNET)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Smooth random pictures in many shapes, smaller and larger than any model's input."""
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (64, 48), (33, 97), (200, 31), (7, 12), (32, 32), (64, 64), (301, 299), (65, 64), (20, 20)]
    return [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(shape, Image.Resampling.BICUBIC)
        for shape in shapes
    ]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return ["a red fox", "an umbrella in the rain", "", "snow " * 40, "Ünïcode – ok?", "cat", "a", "see-no-evil monkey"]
