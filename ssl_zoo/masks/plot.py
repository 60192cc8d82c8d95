"""Visualizations of masks."""

from jaxtyping import Float
from torch import Tensor

from ssl_zoo.masks.base import Masks
from ssl_zoo.plotting import on_grey, patch_set, rows_of


def plot_masks(
    images: Float[Tensor, "B _ H W"], masks: Masks, grid: tuple[int, int]
) -> Float[Tensor, "3 rows columns"]:
    """Plot a row per image: the image, each context, each target block; all other patches are grey.

    Args:
        images: values in 0..1.
        grid: patch rows and columns.
    """
    num_patches = grid[0] * grid[1]
    contexts = [patch_set(context, num_patches) for context in masks.context.unbind(1)]
    visible = contexts if masks.masked is None else [~masks.masked]
    predicted = [patch_set(block, num_patches) for block in masks.targets.unbind(1)]
    return rows_of([images, *(on_grey(images, shown, grid) for shown in [*visible, *predicted])])
