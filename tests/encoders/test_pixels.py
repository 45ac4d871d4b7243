"""The CPU half of preprocessing is open_clip's own, without torch."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from remembrandt.encoders.pixels import ClipPixelTransform


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (24, 40)])
def test_pixels_are_those_of_open_clips_transform(
    resize_mode: str, interpolation: str, size: tuple[int, int], pictures: list[Image.Image]
) -> None:
    config = PreprocessCfg(
        size=size, resize_mode=resize_mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    reference = image_transform_v2(config, is_train=False)
    transform = ClipPixelTransform(*size, resize_mode, interpolation, fill_color=0)
    for picture in pictures:
        expected_HWC = (reference(picture) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(transform(picture), expected_HWC)


def test_padding_takes_the_models_fill_colour() -> None:
    pixels_HWC = ClipPixelTransform(8, 8, "longest", fill_color=127)(Image.new("RGB", (16, 8), "red"))
    assert (pixels_HWC[0] == 127).all()
    assert (pixels_HWC[4] == (255, 0, 0)).all()


def test_transform_is_unpickled_without_importing_torch() -> None:
    data = pickle.dumps(ClipPixelTransform(64, 64))
    program = (
        "import pickle, sys\nfrom PIL import Image\n"
        f"pixels = pickle.loads({data!r})(Image.new('RGB', (90, 70)))\n"
        "assert pixels.shape == (64, 64, 3)\nassert 'torch' not in sys.modules\nassert 'open_clip' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
