"""A trained model as an open_clip folder: config, safetensors in half precision, vocabulary, report."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from remembrandt.encoders.resolution import CONFIG_FILE
from remembrandt.storage import open_store
from remembrandt.training.contrastive import vocabulary

WEIGHTS_FILE = "open_clip_model.safetensors"
REPORT_FILE = "report.json"


def export_model(
    output: str,
    state: dict[str, torch.Tensor],
    model_config: dict[str, Any],
    preprocess: dict[str, Any],
    class_prompt: str,
    merges: Path | None,
    report: dict[str, Any],
) -> None:
    """Writes the folder at a path or URI; the weights come last, so that a folder with weights is whole."""
    store = open_store(output)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = {"model_cfg": model_config, "preprocess_cfg": preprocess, "class_prompt": class_prompt}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        if merges is not None:
            shutil.copyfile(merges, folder / vocabulary.FILE_NAME)
        weights = {name: _half(value) for name, value in state.items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        for file in sorted(folder.iterdir(), key=lambda file: file.name == WEIGHTS_FILE):
            store.upload(file, file.name)


def _half(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value
