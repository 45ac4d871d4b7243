"""The encoder that ships with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import remembrandt.encoders
from remembrandt.encoders import ClipEncoder, EncoderConfig, fingerprint_of, normalise, open_encoder

FOLDER = Path(remembrandt.encoders.__file__).parent / "weights" / "mini-clip"
SHARE_ALIKE = "SA"


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return open_encoder(EncoderConfig(device="cpu"))


def draw_named_things() -> dict[str, Image.Image]:
    """Things that everybody draws alike, on white."""
    pictures = {
        name: Image.new("RGB", (128, 128), "white") for name in ("red circle", "blue square", "yellow heart", "star")
    }
    ImageDraw.Draw(pictures["red circle"]).ellipse((8, 8, 120, 120), fill="#dd2e44")
    ImageDraw.Draw(pictures["blue square"]).rounded_rectangle((8, 8, 120, 120), 12, fill="#5592ec")
    heart = ImageDraw.Draw(pictures["yellow heart"])
    heart.ellipse((10, 18, 68, 76), fill="#fdcb58")
    heart.ellipse((60, 18, 118, 76), fill="#fdcb58")
    heart.polygon([(14, 62), (114, 62), (64, 118)], fill="#fdcb58")
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 58, 25)
    points = [
        (64 + radius * np.cos(angle), 66 + radius * np.sin(angle)) for angle, radius in zip(angles, radii, strict=True)
    ]
    ImageDraw.Draw(pictures["star"]).polygon(points, fill="#ffac33")
    return pictures


def test_it_is_the_default_encoder(encoder: ClipEncoder) -> None:
    assert encoder.dim == 256
    assert encoder.fingerprint == fingerprint_of(EncoderConfig(model="mini-clip"))


def test_pictures_are_nearest_to_their_own_names(encoder: ClipEncoder) -> None:
    pictures = draw_named_things()
    images_BD = normalise(encoder.encode_images(list(pictures.values())))
    texts_BD = normalise(encoder.encode_texts(list(pictures)))
    assert (images_BD @ texts_BD.T).argmax(axis=1).tolist() == list(range(len(pictures)))


def test_classes_are_asked_for_by_their_plain_names(encoder: ClipEncoder) -> None:
    assert encoder.class_prompt == "{}"


def test_words_of_like_meaning_are_near(encoder: ClipEncoder) -> None:
    texts = ["dog", "puppy", "airplane", "aircraft", "strawberry", "fruit"]
    similarity_BB = (lambda x_BD: x_BD @ x_BD.T)(normalise(encoder.encode_texts(texts)))
    np.fill_diagonal(similarity_BB, -1)
    assert similarity_BB.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_its_weights_fit_the_repository() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 20_000_000


def test_its_card_and_report_state_licences_and_recall() -> None:
    report = json.loads((FOLDER / "report.json").read_text())
    licences = {style["licence"] for style in report["training"]["styles"]}
    assert licences
    assert not any(SHARE_ALIKE in licence for licence in licences)
    recall = report["metrics"]["text_to_image"]["new/seen_styles"]["recall@10"]
    assert f"{recall:.3f}" in (FOLDER / "README.md").read_text()
