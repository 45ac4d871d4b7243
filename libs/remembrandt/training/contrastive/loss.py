"""Contrastive losses with several positives, over the batches of all workers.

Shapes: B images, P texts (one an entity), D embedding.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

_RELATIONS_WEIGHT, _MATCHING_WEIGHT, _MATCHING_SCALE = 5.0, 0.05, 20.0


def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenates the workers' rows; gradients flow back to the worker that a row came from."""
    return torch.cat(list(_GatherWithGradient.apply(x.contiguous()))) if num_workers() > 1 else x


def gather_labels(labels: torch.Tensor) -> torch.Tensor:
    """Concatenates integer rows of all workers."""
    return torch.cat(_all_gather(labels.contiguous())) if num_workers() > 1 else labels


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Makes all workers' gradients their mean, in one message."""
    if num_workers() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_workers()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def num_workers() -> int:
    """Size of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_all_gather(x))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = torch.stack(gradients)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _all_gather(x: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(x) for _ in range(num_workers())]
    dist.all_gather(parts, x)
    return parts


def image_text_loss(
    images_BD: torch.Tensor,
    texts_PD: torch.Tensor,
    image_entities_B: torch.Tensor,
    text_entities_P: torch.Tensor,
    scale: torch.Tensor,
    alike_EE: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Symmetric cross-entropy of CLIP in which every pair of one entity is a positive.

    With `alike_EE` (rows sum to 1, over all entities) a share `smoothing` of the target follows it.
    Embeddings have unit length.
    """
    logits_BP = scale * images_BD @ texts_PD.T
    same_BP = (image_entities_B[:, None] == text_entities_P[None, :]).float()
    if alike_EE is not None and smoothing:
        alike_BP = alike_EE[image_entities_B][:, text_entities_P]
        targets_BP = (1 - smoothing) * _rows_to_one(same_BP) + smoothing * _rows_to_one(alike_BP)
        alike_PB = alike_EE[text_entities_P][:, image_entities_B]
        targets_PB = (1 - smoothing) * _rows_to_one(same_BP.T) + smoothing * _rows_to_one(alike_PB)
    else:
        targets_BP, targets_PB = _rows_to_one(same_BP), _rows_to_one(same_BP.T)
    image_to_text = F.cross_entropy(logits_BP, targets_BP)
    text_to_image = F.cross_entropy(logits_BP.T, targets_PB)
    return (image_to_text + text_to_image) / 2


def same_entity_loss(images_BD: torch.Tensor, entities_B: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Supervised contrastive loss: images of one entity attract each other, whatever their style.

    Source: Khosla et al., Supervised Contrastive Learning, Eq. 2. Images without a partner in the batch are left out.
    """
    own = torch.eye(len(images_BD), dtype=torch.bool, device=images_BD.device)
    logits_BB = (images_BD @ images_BD.T / temperature).masked_fill(own, -1e4)
    positives_BB = ((entities_B[:, None] == entities_B[None, :]) & ~own).float()
    paired = positives_BB.sum(dim=1) > 0
    if not paired.any():
        return images_BD.sum() * 0
    return F.cross_entropy(logits_BB[paired], _rows_to_one(positives_BB[paired]))


def teacher_loss(students_ND: torch.Tensor, teachers_ND: torch.Tensor) -> torch.Tensor:
    """How far the students' unit vectors are from the teacher's: in angle, in their similarities, in a line-up."""
    apart = 1 - (students_ND * teachers_ND).sum(dim=1).mean()
    relations = (students_ND @ students_ND.T - teachers_ND @ teachers_ND.T).square().mean()
    own = torch.arange(len(students_ND), device=students_ND.device)
    matching = F.cross_entropy(_MATCHING_SCALE * students_ND @ teachers_ND.T, own)
    return apart + _RELATIONS_WEIGHT * relations + _MATCHING_WEIGHT * matching


def _rows_to_one(x: torch.Tensor) -> torch.Tensor:
    return x / x.sum(dim=1, keepdim=True)
