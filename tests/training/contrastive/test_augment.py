"""Augmented images: varied, reproducible, and still on their background."""

import torch

from remembrandt.training.contrastive.augment import augment
from remembrandt.training.contrastive.config import AugmentationConfig

STILL = AugmentationConfig(
    zoom=(1, 1),
    **dict.fromkeys(("aspect", "rotate", "flip", "brightness", "contrast", "saturation", "hue", "grey"), 0),
    **dict.fromkeys(("background", "outline", "erase"), 0),
)


def make_discs(count: int, edge: int = 40) -> torch.Tensor:
    """Red discs on white, (count, edge, edge, 3) uint8."""
    ticks = torch.linspace(-1, 1, edge)
    inside = (ticks[:, None] ** 2 + ticks[None, :] ** 2 < 0.5).unsqueeze(-1)
    disc = torch.where(inside, torch.tensor([200, 30, 30]), torch.tensor([255, 255, 255]))
    return disc.to(torch.uint8).repeat(count, 1, 1, 1)


def run(config: AugmentationConfig, count: int = 32, seed: int = 0) -> torch.Tensor:
    return augment(make_discs(count), 32, 32, config, torch.Generator().manual_seed(seed))


def test_images_have_the_models_size_and_range() -> None:
    x_BCHW = run(AugmentationConfig())
    assert x_BCHW.shape == (32, 3, 32, 32)
    assert x_BCHW.min() >= 0
    assert x_BCHW.max() <= 1


def test_a_seed_gives_the_same_images_again() -> None:
    torch.testing.assert_close(run(AugmentationConfig(), seed=1), run(AugmentationConfig(), seed=1), rtol=0, atol=0)
    assert not torch.equal(run(AugmentationConfig(), seed=1), run(AugmentationConfig(), seed=2))


def test_without_deviations_only_small_shifts_remain() -> None:
    x_BCHW = run(STILL)
    torch.testing.assert_close(
        x_BCHW[:, :, 16, 16], torch.tensor([200, 30, 30]).div(255).expand(32, 3), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(x_BCHW[:, :, 0, 0], torch.ones(32, 3), rtol=0, atol=1e-3)


def test_colours_vary_while_white_stays_white() -> None:
    config = STILL.model_copy(update={"hue": 40.0, "saturation": 0.5, "contrast": 0.3})
    x_BCHW = run(config)
    torch.testing.assert_close(x_BCHW[:, :, 0, 0], torch.ones(32, 3), rtol=0, atol=1e-3)
    assert x_BCHW[:, :, 16, 16].std(dim=0).max() > 0.03


def test_grey_removes_all_colour() -> None:
    x_BCHW = run(STILL.model_copy(update={"grey": 1.0}))
    torch.testing.assert_close(x_BCHW[:, 0], x_BCHW[:, 2], rtol=0, atol=1e-3)


def test_backgrounds_are_replaced_around_the_object_only() -> None:
    x_BCHW = run(STILL.model_copy(update={"background": 1.0}))
    torch.testing.assert_close(
        x_BCHW[:, :, 16, 16], torch.tensor([200, 30, 30]).div(255).expand(32, 3), rtol=0, atol=1e-3
    )
    assert x_BCHW[:, :, 2, 2].std(dim=0).min() > 0.1


def test_outlines_are_black_where_colours_meet() -> None:
    x_BCHW = run(STILL.model_copy(update={"outline": 1.0}))
    darkest_B = x_BCHW.amax(dim=1).amin(dim=(1, 2))
    assert darkest_B.max() < 0.25
    line_drawings_B = x_BCHW[:, 1, 16, 16] > 0.9
    assert 0 < line_drawings_B.sum() < len(line_drawings_B) * 0.6
    torch.testing.assert_close(x_BCHW[:, :, 1, 1], torch.ones(32, 3), rtol=0, atol=1e-3)


def test_erasing_changes_part_of_the_image() -> None:
    changed_B = (
        (run(STILL.model_copy(update={"erase": 1.0})) - run(STILL)).abs().amax(dim=1).gt(0.02).float().mean(dim=(1, 2))
    )
    assert changed_B.mean() > 0.02
    assert changed_B.max() < 0.5
