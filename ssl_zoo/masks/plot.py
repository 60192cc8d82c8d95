"""Figures of masks."""

from jaxtyping import Bool, Float
from torch import Tensor

from ssl_zoo.masks.base import Masks, Pairing
from ssl_zoo.plotting import Column, Figure, Swatch, on_grey, patch_set


def plot_masks(images: Float[Tensor, "B _ H W"], masks: Masks, grid: tuple[int, int]) -> Figure:
    """Return a figure of the image, each context and each target block; all other patches are grey.

    Args:
        images: values in 0..1.
        grid: patch rows and columns.
    """
    num_patches = grid[0] * grid[1]
    contexts = [patch_set(context, num_patches) for context in masks.context.unbind(1)]
    visible = contexts if masks.masked is None else [~masks.masked]
    predicted = [patch_set(block, num_patches) for block in masks.targets.unbind(1)]

    def columns(kind: str, sets: list[Bool[Tensor, "B N"]]) -> list[Column]:
        titles = [kind] if len(sets) == 1 else [f"{kind} {number + 1}" for number in range(len(sets))]
        return [
            Column(f"{title}, {shown.float().mean().item():.0%} of the patches", on_grey(images, shown, grid))
            for title, shown in zip(titles, sets, strict=True)
        ]

    pairs = " Context 1 predicts target block 1, and so on." if masks.pairing is Pairing.zip else ""
    return Figure(
        "Masks: which patches the encoder sees (context) and which are predicted from them (target)",
        [
            Column("image", images),
            *columns("context", visible),
            *columns("target" if len(predicted) == 1 else "target block", predicted),
        ],
        [Swatch("patches that do not belong to the column's set")],
        f"An image is cut into {grid[0]} x {grid[1]} patches.{pairs}",
    )
