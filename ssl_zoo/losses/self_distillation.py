"""Self-distillation over prototypes: a student matches a teacher.

DINO (arXiv 2104.14294), iBOT (arXiv 2111.07832), MSN (arXiv 2204.07141); Sinkhorn-Knopp as in SwAV (arXiv 2006.09882)
and DINOv2 (arXiv 2304.07193).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_zoo.world import World


@torch.no_grad()
def center_and_sharpen(
    outputs: Float[Tensor, "*S K"], center: Float[Tensor, "K"], temperature: Float[Tensor, ""]
) -> Float[Tensor, "*S K"]:
    """Turn a teacher's head outputs into distributions: subtract the center, then apply a softmax at a temperature."""
    return ((outputs - center) / temperature).softmax(dim=-1)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "*S K"], world: World, iterations: int, counted: Bool[Tensor, "*S"] | None = None
) -> Float[Tensor, "*S K"]:
    """Turn scores into distributions that give all prototypes about the same mass (Sinkhorn-Knopp).

    An iteration scales the prototypes to equal masses over the rows of all ranks, then each row to the sum 1. Both
    happen to logarithms, so that cold scores of any size neither overflow nor leave a row empty.

    Args:
        scores: logits divided by the temperature; without iterations the result is ``exp(scores)``.
        counted: True = the row takes part in the masses of prototypes; None = all rows do.
    """
    log_q = scores.flatten(0, -2)
    for _ in range(iterations):
        rows = log_q if counted is None else log_q.masked_fill(~counted.flatten()[:, None], -torch.inf)
        masses = world.gather(rows.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
        log_q = (log_q - masses.nan_to_num(neginf=0.0)).log_softmax(dim=-1)  # -inf where no row is counted
    return log_q.exp().view_as(scores)


def mean_entropy_gap(probabilities: Float[Tensor, "S K"], world: World) -> Float[Tensor, ""]:
    """Return by how much the entropy of the mean distribution of all ranks falls short of ln K.

    This is MSN's me-max term (arXiv 2204.07141, sec. 3): 0 where all prototypes are used equally, ln K where one
    of them has all the mass.
    """
    mean = world.mean(probabilities.mean(dim=0))
    mean = mean.clamp_min(torch.finfo(torch.float32).tiny)  # the slope of the entropy at 0 is infinite
    return math.log(len(mean)) - entropy(mean)


def entropy(probabilities: Float[Tensor, "*S K"]) -> Float[Tensor, "*S"]:
    """Return the entropy of distributions in nats."""
    return torch.special.entr(probabilities).sum(dim=-1)


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
