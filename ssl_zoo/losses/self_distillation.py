"""Self-distillation over prototypes (DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832): a student matches a teacher."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def center_and_sharpen(
    outputs: Float[Tensor, "*S K"], center: Float[Tensor, "K"], temperature: Float[Tensor, ""]
) -> Float[Tensor, "*S K"]:
    """Turn a teacher's head outputs into distributions: subtract the center, then apply a softmax at a temperature."""
    return ((outputs - center) / temperature).softmax(dim=-1)


def cross_entropy_across_views(
    logits: Float[Tensor, "V B K"], probabilities: Float[Tensor, "G B K"]
) -> Float[Tensor, ""]:
    """Average the cross entropy over images and all pairs of a teacher's view and another view of the student.

    Args:
        logits: of the student for V views, the G global ones first.
        probabilities: of the teacher for the global views.
    """
    num_global, (num_views, num_images, _) = len(probabilities), logits.shape
    log_probabilities = F.log_softmax(logits, dim=-1)
    total = probabilities.sum(dim=0)
    # Each view of the student meets the sum of the distributions that it is compared with: all but its own.
    agreement = (log_probabilities[:num_global] * (total - probabilities)).sum()
    agreement = agreement + (log_probabilities[num_global:] * total).sum()
    return -agreement / (num_images * num_global * (num_views - 1))


def cross_entropy_at_patches(
    logits: Float[Tensor, "S N K"], probabilities: Float[Tensor, "S N K"], masked: Bool[Tensor, "S N"]
) -> Float[Tensor, ""]:
    """Average the cross entropy over a crop's masked patches, then over crops; a crop without any counts as zero."""
    losses = -(probabilities * F.log_softmax(logits, dim=-1)).sum(dim=-1)
    return ((losses * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()
