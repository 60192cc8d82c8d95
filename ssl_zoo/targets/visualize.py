"""Figures of masked methods: masks, and predictions as their target shows them."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks import Masks, plot_masks
from ssl_zoo.nn import ViT
from ssl_zoo.plotting import Figure
from ssl_zoo.targets.base import Target


@torch.no_grad()
def show_predictions(
    target: Target, predictions: Float[Tensor, "B C pairs T D"], batch: Batch, encoder: ViT
) -> Mapping[str, Figure]:
    """Return figures of the masks of the view ``image``, and of the predictions that the first context makes."""
    masks = batch.masks["image"]
    first = Masks(masks.context[:, :1], masks.paired(masks.targets)[:, 0])
    return {
        "masks": plot_masks(batch.pixels("image"), masks, encoder.grid),
        **target.visualize(predictions[:, 0].float(), batch, first, encoder),
    }
