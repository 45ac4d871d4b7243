"""Losses with several positives."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from remembrandt.training.contrastive.loss import image_text_loss, same_entity_loss, teacher_loss

SCALE = torch.tensor(20.0)


def unit(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_single_positives_give_clips_own_loss() -> None:
    torch.manual_seed(0)
    images_BD, texts_PD = F.normalize(torch.randn(6, 8), dim=-1), F.normalize(torch.randn(6, 8), dim=-1)
    entities = torch.arange(6)
    logits = SCALE * images_BD @ texts_PD.T
    expected = (F.cross_entropy(logits, entities) + F.cross_entropy(logits.T, entities)) / 2
    torch.testing.assert_close(image_text_loss(images_BD, texts_PD, entities, entities, SCALE), expected)


def test_images_of_one_entity_are_not_each_others_negatives() -> None:
    images_BD = unit([[1, 0], [1, 0], [0, 1], [0, 1]])
    texts_PD = unit([[1, 0], [0, 1]])
    right = image_text_loss(images_BD, texts_PD, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), SCALE)
    wrong = image_text_loss(images_BD, texts_PD, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]), SCALE)
    # Two equal positives share the target: the best that text → image can do is log 2.
    torch.testing.assert_close(right, torch.tensor(2.0).log() / 2, rtol=0, atol=1e-3)
    assert wrong > right + 1


def test_smoothing_rewards_likeness_to_what_the_teacher_finds_alike() -> None:
    alike_EE = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]])
    entities, texts_PD = torch.arange(3), unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    towards_alike, towards_other = (
        unit([[1, 0.4, 0], [0.4, 1, 0], [0, 0, 1]]),
        unit([[1, 0, 0.4], [0, 1, 0.4], [0, 0, 1]]),
    )

    def loss(images_BD: torch.Tensor) -> float:
        return image_text_loss(images_BD, texts_PD, entities, entities, SCALE, alike_EE, smoothing=0.5).item()

    assert loss(towards_alike) < loss(towards_other)


def test_same_entity_loss_wants_styles_together_and_ignores_lone_images() -> None:
    together = unit([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0], [0, 0, 1]])
    entities = torch.tensor([0, 0, 1, 1, 2])
    assert same_entity_loss(together, entities) < same_entity_loss(together, torch.tensor([0, 1, 0, 1, 2]))
    assert same_entity_loss(together, torch.arange(5)) == 0


def test_teacher_loss_vanishes_only_in_agreement() -> None:
    torch.manual_seed(0)
    teachers_ND = torch.eye(8)
    assert teacher_loss(teachers_ND, teachers_ND) < 1e-4
    assert teacher_loss(teachers_ND.flip(0), teachers_ND) > 1
