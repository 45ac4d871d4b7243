"""What CLIP embeddings are, and that they depend on nothing but the row."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from remembrandt.encoders import ClipEncoder, EncoderConfig, open_encoder, pixel_transform_of
from remembrandt.errors import ServiceError


def open_tiny(folder: Path, **options: object) -> ClipEncoder:
    return open_encoder(
        EncoderConfig.model_validate({"model": str(folder), "precision": "fp32", "device": "cpu", **options})
    )


@pytest.fixture(params=["vit_folder", "resnet_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_image_embeddings_equal_open_clips(folder: Path, pictures: list[Image.Image]) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.inference_mode():
        expected_BD = model.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures])).numpy()
    embeddings_BD = open_tiny(folder).encode_images(pictures)
    assert embeddings_BD.dtype == np.float32
    np.testing.assert_allclose(embeddings_BD, expected_BD, rtol=1e-5, atol=1e-5)


def test_text_embeddings_equal_open_clips(folder: Path, captions: list[str]) -> None:
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens_BT = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    with torch.inference_mode():
        expected_BD = model.encode_text(tokens_BT).numpy()
    np.testing.assert_allclose(open_tiny(folder).encode_texts(captions), expected_BD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_embeds_to_the_same_bits_whatever_its_neighbours(
    folder: Path, precision: str, pictures: list[Image.Image], captions: list[str]
) -> None:
    encoder = open_tiny(folder, precision=precision, batch_size=4)
    pixels_BHWC = np.stack([encoder.pixel_transform(picture) for picture in pictures])
    together_BD = encoder.encode_pixels(pixels_BHWC)
    for sizes in ((1,) * 10, (3, 7), (9, 1), (2, 2, 2, 2, 2)):
        parts = np.split(pixels_BHWC, np.cumsum(sizes)[:-1])
        np.testing.assert_array_equal(np.concatenate([encoder.encode_pixels(part) for part in parts]), together_BD)
    reverse_BD = encoder.encode_pixels(pixels_BHWC[::-1])
    np.testing.assert_array_equal(reverse_BD[::-1], together_BD)
    singly_BD = np.concatenate([encoder.encode_texts([caption]) for caption in captions])
    np.testing.assert_array_equal(singly_BD, encoder.encode_texts(captions))


def test_embeddings_are_raw(vit_folder: Path, pictures: list[Image.Image]) -> None:
    norms_B = np.linalg.norm(open_tiny(vit_folder).encode_images(pictures), axis=1)
    assert np.abs(norms_B - 1).min() > 1e-3


def test_a_cpu_encodes_an_image_that_somebody_searches_with_alone(
    vit_folder: Path, pictures: list[Image.Image]
) -> None:
    encoder, passes = open_tiny(vit_folder), []
    encoder.model.visual.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    asked_BD = encoder.encode_images(pictures[:2])
    stored_BD = encoder.encode_pixels(np.stack([encoder.pixel_transform(picture) for picture in pictures[:2]]))
    assert passes == [1, 1, 16]
    np.testing.assert_allclose(asked_BD, stored_BD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close_to_single(folder: Path, precision: str, pictures: list[Image.Image]) -> None:
    single_BD = open_tiny(folder).encode_images(pictures)
    half_BD = open_tiny(folder, precision=precision).encode_images(pictures)
    cosine_B = (single_BD * half_BD).sum(1) / (np.linalg.norm(single_BD, axis=1) * np.linalg.norm(half_BD, axis=1))
    assert half_BD.dtype == np.float32
    assert cosine_B.min() > 0.999
    assert not np.array_equal(single_BD, half_BD)


def test_no_rows_give_no_embeddings(vit_folder: Path) -> None:
    encoder = open_tiny(vit_folder)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 32)


def exhaust_memory_above(encoder: ClipEncoder, rows: int, error: str) -> None:
    """Makes the network run out of memory for larger batches: really on the CPU, as CUDA says it on request."""

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > rows:
            if error == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            torch.empty(2**60, dtype=torch.uint8)

    encoder.model.visual.register_forward_pre_hook(check)


@pytest.mark.parametrize("error", ["cuda", "cpu"])
def test_out_of_memory_halves_the_batch_and_goes_on(
    vit_folder: Path, error: str, pictures: list[Image.Image], capfd: pytest.CaptureFixture[str]
) -> None:
    expected_BD = open_tiny(vit_folder).encode_images(pictures)
    encoder = open_tiny(vit_folder, batch_size=64)
    exhaust_memory_above(encoder, 8, error)
    np.testing.assert_allclose(encoder.encode_images(pictures), expected_BD, rtol=1e-5, atol=1e-6)
    assert encoder.image_query_batches.size == 8
    assert "batches of 8" in capfd.readouterr().err


def test_memory_that_does_not_hold_one_row_is_one_clear_line(vit_folder: Path, pictures: list[Image.Image]) -> None:
    encoder = open_tiny(vit_folder, batch_size=2)
    exhaust_memory_above(encoder, 0, "cuda")
    with pytest.raises(ServiceError, match="with a single row") as raised:
        encoder.encode_images(pictures)
    assert "\n" not in str(raised.value)


def test_other_errors_of_the_network_are_not_taken_for_lack_of_memory(
    vit_folder: Path, pictures: list[Image.Image]
) -> None:
    encoder = open_tiny(vit_folder)

    def fail(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise RuntimeError("a broken kernel")

    encoder.model.visual.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        encoder.encode_images(pictures)


def test_threads_follow_the_configuration(vit_folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        open_tiny(vit_folder, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_pixel_transform_needs_no_weights(vit_folder: Path) -> None:
    assert pixel_transform_of(EncoderConfig(model=str(vit_folder))) == open_tiny(vit_folder).pixel_transform
