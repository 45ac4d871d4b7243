"""The training job on real Ray Train workers: it learns, survives being killed, and leaves a model that opens."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from transformers import BertConfig, BertModel, BertTokenizerFast

from remembrandt.encoders import EncoderConfig, open_encoder
from tests.support.processes import wait_until
from tests.support.ray_cluster import RayCluster

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "orange", "purple", "brown")
SHAPES = ("disc", "square", "triangle")
# Four processes import torch before a run begins: seconds on a free machine, minutes on a crowded one.
DEADLINE = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE)]

STYLES = ("solid", "line", "sketch")


def draw(colour: str, shape: str, style: str) -> bytes:
    image = Image.new("RGB", (40, 40), "white")
    pen = ImageDraw.Draw(image)
    ink = {"fill": colour} if style == "solid" else {"outline": colour, "width": 3 if style == "line" else 1}
    if shape == "disc":
        pen.ellipse((6, 6, 34, 34), **ink)
    else:
        pen.regular_polygon((20, 20, 16), 4 if shape == "square" else 3, **{**ink, "width": ink.get("width", 1)})
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_shard(file: Path) -> None:
    """18 entities in three styles; one in six is held out."""
    with tarfile.open(file, "w") as tar:
        for number, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
            for style in STYLES:
                name = f"{colour} {shape}"
                split = "held-out" if number % 6 == 5 else "train"
                fields = {
                    "captions": [name, f"{name}, {colour}, {style}"],
                    "entity": name,
                    "style": style,
                    "split": split,
                }
                files = {
                    "png": draw(colour, shape, style),
                    "txt": name.encode(),
                    "json": json.dumps({**fields, "licence": "MIT", "artist": "the test"}).encode(),
                }
                for extension, data in files.items():
                    member = tarfile.TarInfo(f"{number:02d}_{style}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_teacher(folder: Path) -> None:
    """A real sentence encoder, untrained and tiny."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *SHAPES, *STYLES, *"abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, teacher and phrases of all runs."""
    folder = tmp_path_factory.mktemp("train_clip")
    (folder / "data").mkdir()
    write_shard(folder / "data" / "00000.tar")
    write_teacher(folder / "teacher")
    (folder / "phrases.txt").write_text("\n".join(f"a {word} thing" for word in (*COLOURS, *SHAPES)))
    return folder


def start(place: Path, name: str, environment: dict[str, str], *overrides: str) -> subprocess.Popen[str]:
    """Starts the tiny configuration as run `name`, with `key=value` overrides."""
    values = yaml.safe_load((ROOT / "jobs/configs/train_clip/tiny.yaml").read_text())
    values["name"], values["output"], values["storage"] = name, str(place / name / "model"), str(place / name / "runs")
    values["data"]["sources"][0]["uri"] = str(place / "data")
    values["data"]["cache"] = str(place / name / "cache")
    values["distillation"] |= {"teacher": str(place / "teacher"), "phrases": [str(place / "phrases.txt")]}
    config = place / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, ROOT / "jobs/train_clip.py", "--config", config, "--json", *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str]) -> dict[str, Any]:
    """The report of a job that ends well."""
    out, err = job.communicate(timeout=DEADLINE)
    assert job.returncode == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.fixture(scope="module")
def unbroken(place: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Report of a run that nothing disturbed."""
    cluster = request.getfixturevalue("_session_ray_cluster")
    return finish(start(place, "unbroken", cluster.environment))


def test_training_lowers_the_loss(unbroken: dict[str, Any]) -> None:
    pair_losses = [loss for step, loss in unbroken["losses"] if step > 6]
    assert [step for step, _ in unbroken["losses"]] == list(range(1, 31))
    assert np.mean(pair_losses[-5:]) < np.mean(pair_losses[:5]) - 0.1


def test_the_report_states_recall_with_its_galleries(unbroken: dict[str, Any]) -> None:
    metrics = unbroken["metrics"]
    assert metrics["text_to_image"]["known/unseen_style"].keys() == {
        "recall@1", "recall@5", "recall@10", "queries", "gallery",
    }  # fmt: skip
    assert metrics["text_to_image"]["known/unseen_style"]["gallery"] == 15
    assert metrics["text_to_image"]["new/seen_styles"]["gallery"] == 6
    assert metrics["text_to_image"]["new/seen_styles/among_all"]["gallery"] == 36
    assert metrics["image_to_image"]["new/unseen_style_in_seen_styles"]["queries"] == 3


def test_the_report_credits_what_was_trained_on(unbroken: dict[str, Any]) -> None:
    assert unbroken["training"]["images"] == 30
    assert unbroken["training"]["entities"] == 15
    assert {style["style"] for style in unbroken["training"]["styles"]} == {"solid", "line"}


def test_the_model_opens_as_an_encoder(unbroken: dict[str, Any], place: Path) -> None:
    encoder = open_encoder(EncoderConfig(model=str(place / "unbroken" / "model"), device="cpu"))
    images_BD = encoder.encode_images([Image.open(io.BytesIO(draw("red", "disc", "solid")))])
    assert images_BD.shape == encoder.encode_texts(["red disc"]).shape == (1, 32)
    assert encoder.class_prompt == "An image of a {}."


def test_a_killed_run_resumes_to_the_same_losses(
    unbroken: dict[str, Any], place: Path, ray_cluster: RayCluster
) -> None:
    job = start(place, "killed", ray_cluster.environment)
    known = place / "killed" / "runs" / "killed" / "checkpoint_manager_snapshot.json"
    wait_until(
        lambda: known.exists() and "checkpoint_" in known.read_text(), "a first checkpoint", DEADLINE, interval=0.01
    )
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert not (place / "killed" / "model" / "report.json").exists(), "it was killed too late to show anything"
    report = finish(start(place, "killed", ray_cluster.environment))
    assert report["losses"] == unbroken["losses"]


def test_a_user_error_in_a_worker_is_one_line(place: Path, ray_cluster: RayCluster) -> None:
    job = start(place, "mistaken", ray_cluster.environment, "workers=1", "data.styles=[oil painting]")
    _, err = job.communicate(timeout=DEADLINE)
    assert job.returncode == 2
    assert "no pair may be trained on" in err.strip().splitlines()[-1]
