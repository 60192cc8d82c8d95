"""Regression losses: distances between predicted and target features or pixels."""

from enum import Enum

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class Distance(Enum):
    """A distance between prediction and target, averaged over all elements."""

    smooth_l1 = "smooth_l1"  # the reference code of I-JEPA
    l2 = "l2"  # I-JEPA, arXiv 2301.08243, eq. 1; its sum over elements is a mean here, a constant factor for AdamW

    def __call__(self, predictions: Tensor, targets: Tensor, beta: float) -> Float[Tensor, ""]:
        """Return the mean distance.

        Args:
            beta: difference at which smooth L1 turns from quadratic to linear.
        """
        if self is Distance.l2:
            return F.mse_loss(predictions, targets)
        return F.smooth_l1_loss(predictions, targets, beta=beta)


def masked_mean(errors: Float[Tensor, "B N D"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Average elementwise errors over the masked patches of the whole batch; images may have different numbers."""
    return (errors.mean(dim=-1) * masked).sum() / masked.sum()
