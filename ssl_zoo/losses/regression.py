"""Regression losses: distances between predicted and target features or pixels."""

from enum import Enum

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class Distance(Enum):
    """A distance between prediction and target, averaged over all elements."""

    smooth_l1 = "smooth_l1"  # the reference code of I-JEPA
    l2 = "l2"  # I-JEPA, arXiv 2301.08243, eq. 1; its sum over elements is a mean here, a constant factor for AdamW

    def __call__(
        self,
        predictions: Float[Tensor, "*S D"],
        targets: Float[Tensor, "*S D"],
        beta: float,
        weights: Float[Tensor, "*S"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean distance.

        Args:
            beta: difference at which smooth L1 turns from quadratic to linear.
            weights: factors of the tokens' distances, whose sum is still divided by the number of tokens.
        """
        reduction = "mean" if weights is None else "none"
        if self is Distance.l2:
            errors = F.mse_loss(predictions, targets, reduction=reduction)
        else:
            errors = F.smooth_l1_loss(predictions, targets, beta=beta, reduction=reduction)
        return errors if weights is None else (errors.mean(dim=-1) * weights).mean()


def masked_mean(errors: Float[Tensor, "B N D"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Average elementwise errors over the masked patches of the whole batch; images may have different numbers."""
    return (errors.mean(dim=-1) * masked).sum() / masked.sum()
