"""Patches as in P1 F.1, and whole images."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.data.decode import decode_image
from remembrandt.data.patches import PatchConfig, cut_box, cut_patches, encode_patch, patch_boxes, patch_bytes
from remembrandt.errors import ConfigError

PATCHES = PatchConfig(mode="patches")


def noise(width, height, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image):
    return np.asarray(image, int)


def test_patches_are_what_cropping_the_resized_image_gives():
    image = noise(500, 375)
    resized = image.resize((1600, 1200), Image.Resampling.BICUBIC)
    for patch, box in zip(cut_patches(image, "k", PATCHES), patch_boxes(image.size, "k", PATCHES), strict=True):
        left, top = round(box[0] * 3.2), round(box[1] * 3.2)
        assert patch.image.size == (256, 256)
        assert np.array_equal(pixels(patch.image), pixels(resized.crop((left, top, left + 256, top + 256))))


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (2400, 1200), (1200, 1200), (1000, 260), (4000, 3000)])
def test_boxes_lie_in_the_source_and_have_the_patches_size_at_scale(shape, size):
    config = PatchConfig(mode="patches", size=size)
    expected = size * min(shape) / 1200
    for patch in cut_patches(noise(*shape), "a", config):
        left, top, right, bottom = patch.box
        assert 0 <= left < right <= shape[0] and 0 <= top < bottom <= shape[1]
        assert abs((right - left) - expected) <= 1.5 and abs((bottom - top) - expected) <= 1.5
        assert patch.image.size == (size, size) and not patch.is_source


def test_the_box_shows_where_the_patch_came_from():
    image = noise(1800, 1500)
    for patch in cut_patches(image, "k", PATCHES):
        again = cut_box(image, patch.box, 256)
        left, top, right, bottom = patch.box
        beside = cut_box(image, (left - 8, top - 8, right - 8, bottom - 8), 256)
        assert np.abs(pixels(again) - pixels(patch.image)).mean() < 8 < np.abs(pixels(beside) - pixels(again)).mean()


def test_every_image_gives_two_or_three_patches():
    counts = [len(patch_boxes((500, 375), str(key), PATCHES)) for key in range(300)]
    assert set(counts) == {2, 3} and 110 < counts.count(2) < 190


def test_patches_spread_over_the_whole_image():
    lefts = [box[0] for key in range(400) for box in patch_boxes((1200, 1200), str(key), PATCHES)]
    assert min(lefts) < 20 and max(lefts) > 924 and abs(np.mean(lefts) - 472) < 40
    assert max(lefts) <= 1200 - 256


def test_patches_depend_on_seed_and_key_alone():
    image = noise(300, 300)
    keys = [f"{number}.jpg" for number in range(20)]
    forward = {key: [patch.box for patch in cut_patches(image, key, PATCHES)] for key in keys}
    random.seed(1)
    np.random.seed(1)
    backward = {key: [patch.box for patch in cut_patches(image, key, PATCHES)] for key in reversed(keys)}
    assert forward == backward
    assert len({tuple(boxes) for boxes in forward.values()}) == 20
    reseeded = PATCHES.model_copy(update={"seed": 1})
    assert [patch.box for patch in cut_patches(image, "0.jpg", reseeded)] != forward["0.jpg"]


def test_draws_stay_the_same_in_later_versions():
    assert [tuple(round(edge) for edge in box) for box in patch_boxes((1200, 1500), "stable", PATCHES)] == GOLDEN


GOLDEN = [(613, 1149, 869, 1405), (195, 871, 451, 1127), (91, 797, 347, 1053)]


@pytest.mark.parametrize("shape", [(255, 400), (1, 1), (3, 900), (100, 100)])
def test_an_image_smaller_than_the_patch_gives_its_centred_square(shape):
    image = noise(*shape)
    (patch,) = cut_patches(image, "k", PATCHES)
    left, top, right, bottom = patch.box
    assert patch.image.size == (256, 256) and right - left == bottom - top == min(shape)
    assert abs((left + right) - shape[0]) <= 1 and abs((top + bottom) - shape[1]) <= 1


def test_whole_mode_keeps_the_source_file():
    image = noise(500, 375)
    (patch,) = cut_patches(image, "k", PatchConfig())
    assert patch.image is image and patch.box == (0, 0, 500, 375) and patch.index == 0
    assert patch_bytes(patch, b"the source's bytes", PatchConfig()) == b"the source's bytes"


@pytest.mark.parametrize(("shape", "small"), [((500, 375), (100, 75)), ((375, 500), (75, 100)), ((900, 2), (100, 1))])
def test_whole_mode_scales_long_edges_down(shape, small):
    config = PatchConfig(max_edge=100)
    (patch,) = cut_patches(noise(*shape), "k", config)
    assert patch.image.size == small and patch.box == (0, 0, *shape)
    assert decode_image(patch_bytes(patch, b"unused", config)).size == small
    (kept,) = cut_patches(noise(*small), "k", config)
    assert kept.is_source


@pytest.mark.parametrize("format", ["webp", "jpeg", "png"])
def test_patches_are_encoded_as_configured(format):
    image = noise(256, 256)
    data = encode_patch(image, PatchConfig(format=format))
    assert Image.open(io.BytesIO(data)).format == format.upper()
    assert np.abs(pixels(decode_image(data)) - pixels(image)).mean() < (0.01 if format == "png" else 4)
    assert encode_patch(image, PatchConfig(format=format)) == data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_image": [3, 2]}, "least <= most"),
        ({"per_image": [0, 2]}, "least <= most"),
        ({"size": 512, "shorter_edge": 256}, "size 512 must not exceed shorter_edge 256"),
        ({"mode": "tiles"}, "mode"),
    ],
)
def test_impossible_settings_are_configuration_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(PatchConfig, values, "here")
