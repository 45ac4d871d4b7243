"""How encoders are named, found and recognised."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from remembrandt.encoders import EncoderConfig, fingerprint_of, open_encoder
from remembrandt.encoders.resolution import resolve
from remembrandt.errors import ConfigError, CorruptionError, RemembrandtError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ViT-S-32-alt checkpoint with random weights, as training scripts save it."""
    file = tmp_path_factory.mktemp("checkpoint") / "weights.pt"
    torch.manual_seed(0)
    torch.save({"state_dict": open_clip.create_model("ViT-S-32-alt").state_dict()}, file)
    return file


def error_of(**config: Any) -> str:
    with pytest.raises(RemembrandtError) as raised:
        open_encoder(EncoderConfig.model_validate({"device": "cpu", **config}))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_architecture_opens_with_a_local_checkpoint(checkpoint: Path) -> None:
    encoder = open_encoder(EncoderConfig(model="ViT-S-32-alt", pretrained=str(checkpoint), device="cpu"))
    assert encoder.encode_texts(["a red fox"]).shape == (1, encoder.dim) == (1, 256)


def test_unknown_model_names_the_nearest() -> None:
    assert "did you mean 'ViT-B-32'?" in error_of(model="ViT-B-3")


def test_a_name_like_no_model_says_what_can_be_given() -> None:
    assert "hf-hub:organisation/name" in error_of(model="/nowhere/at/all")


def test_unknown_tag_names_the_nearest() -> None:
    assert "did you mean 'laion2b_s34b_b79k'?" in error_of(model="ViT-B-32", pretrained="laion2b_s34b_b79")


def test_an_architecture_without_weights_lists_its_tags() -> None:
    message = error_of(model="ViT-B-32")
    assert "set 'pretrained'" in message
    assert "openai" in message


def test_missing_checkpoint_is_named() -> None:
    assert "no checkpoint file at /nowhere/weights.pt" in error_of(model="ViT-B-32", pretrained="/nowhere/weights.pt")


def test_pretrained_beside_a_model_with_weights_is_refused(vit_folder: Path) -> None:
    assert "remove 'pretrained'" in error_of(model=str(vit_folder), pretrained="openai")


def test_folder_without_config_is_named(tmp_path: Path) -> None:
    assert "open_clip_config.json" in error_of(model=str(tmp_path))


def test_folder_without_weights_is_named(vit_folder: Path, tmp_path: Path) -> None:
    shutil.copy(vit_folder / "open_clip_config.json", tmp_path)
    assert "holds no weights" in error_of(model=str(tmp_path))


def test_truncated_weights_are_refused_by_name(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "model")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(weights) in error_of(model=str(folder))


def test_truncated_checkpoint_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "weights.pt"
    damaged.write_bytes(checkpoint.read_bytes()[:5000])
    assert str(damaged) in error_of(model="ViT-S-32-alt", pretrained=str(damaged))


def test_weights_of_another_architecture_are_refused(checkpoint: Path) -> None:
    assert "does not fit the architecture 'RN50'" in error_of(model="RN50", pretrained=str(checkpoint))


def test_broken_model_config_is_refused_by_name(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "model")
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(CorruptionError, match="not valid JSON"):
        fingerprint_of(EncoderConfig(model=str(folder)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpu_is_a_config_error(vit_folder: Path) -> None:
    assert "not here" in error_of(model=str(vit_folder), device="cuda")


def test_misspelt_device_is_a_config_error(vit_folder: Path) -> None:
    assert "use auto, cpu" in error_of(model=str(vit_folder), device="gpuu")


def test_fingerprint_needs_no_network_and_is_the_encoders(vit_folder: Path) -> None:
    config = EncoderConfig(model=str(vit_folder), device="cpu", precision="fp32")
    assert fingerprint_of(config) == open_encoder(config).fingerprint


def test_fingerprint_does_not_depend_on_place_precision_or_spelled_defaults(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "elsewhere")
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["vision_cfg"]["mlp_ratio"] = 4.0
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    here = fingerprint_of(EncoderConfig(model=str(vit_folder)))
    assert fingerprint_of(EncoderConfig(model=str(folder), precision="bf16")) == here


@pytest.mark.parametrize(
    ("section", "key", "value", "part"),
    [
        ("model_cfg", "quick_gelu", True, "architecture"),
        ("preprocess_cfg", "mean", [0.5, 0.5, 0.5], "preprocessing"),
        ("preprocess_cfg", "interpolation", "bilinear", "preprocessing"),
    ],
)
def test_fingerprint_tells_models_apart(
    vit_folder: Path, tmp_path: Path, section: str, key: str, value: object, part: str
) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "other")
    values = json.loads((folder / "open_clip_config.json").read_text())
    values[section][key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    one, other = (fingerprint_of(EncoderConfig(model=str(place))) for place in (vit_folder, folder))
    assert getattr(one, part) != getattr(other, part)
    assert one.digest != other.digest


def test_fingerprint_changes_with_the_weights(save_model: Any, vit_folder: Path) -> None:
    config = json.loads((vit_folder / "open_clip_config.json").read_text())["model_cfg"]
    other = fingerprint_of(EncoderConfig(model=str(save_model(config, seed=1))))
    assert other.weights_sha256 != fingerprint_of(EncoderConfig(model=str(vit_folder))).weights_sha256


def test_a_class_is_asked_for_as_the_folder_says_or_as_in_the_paper(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "model")
    assert resolve(EncoderConfig(model=str(folder))).class_prompt == "An image of a {}."
    set_class_prompt(folder, "{}, a drawing")
    assert resolve(EncoderConfig(model=str(folder))).class_prompt == "{}, a drawing"
    assert fingerprint_of(EncoderConfig(model=str(folder))) == fingerprint_of(EncoderConfig(model=str(vit_folder)))
    set_class_prompt(folder, "a drawing")
    with pytest.raises(ConfigError, match=r"class_prompt 'a drawing' has no \{\} where the name"):
        resolve(EncoderConfig(model=str(folder)))


def set_class_prompt(folder: Path, class_prompt: str) -> None:
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "class_prompt": class_prompt}))


def test_unknown_config_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="batchsize"):
        EncoderConfig.model_validate({"batchsize": 3})


def test_relative_vocabulary_that_is_missing_is_named(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "model")
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "merges.txt.gz"}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="vocabulary"):
        fingerprint_of(EncoderConfig(model=str(folder)))


@pytest.mark.parametrize(
    "config", [{"model": "hf-hub:nobody/nothing"}, {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}]
)
def test_weights_that_cannot_be_downloaded_are_one_clear_line(
    config: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = error_of(**config)
    assert message.startswith(f"cannot download weights of {config['model']}")
    assert "give a local folder or checkpoint" in message
