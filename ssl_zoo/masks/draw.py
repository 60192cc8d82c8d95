"""Pictures of masks: what the encoder sees and what is predicted."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_zoo.masks.base import Masks

GREY = 0.5


def draw_masks(
    images: Float[Tensor, "B 3 H W"], masks: Masks, grid: tuple[int, int], max_images: int = 8
) -> Float[Tensor, "3 rows columns"]:
    """One row per image: the image, each context block, each target block; everything else is grey.

    Args:
        images: values in 0..1.
        grid: patch rows and columns.
    """
    rows = []
    for i in range(min(max_images, images.shape[0])):
        blocks = [*masks.context[i], *masks.targets[i]]
        if masks.hidden is not None:
            blocks = [torch.nonzero(~masks.hidden[i]).flatten(), *masks.targets[i]]
        visible = torch.stack([pixel_mask(block, grid, images.shape[-2:]) for block in blocks])
        panels = torch.where(visible[:, None], images[i], torch.full_like(images[i], GREY))
        rows.append(torch.cat([images[i], *panels], dim=-1))
    return torch.cat(rows, dim=-2).clamp(0, 1)


def pixel_mask(index: Int[Tensor, "K"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """True on the pixels of the patches ``index`` of an image of ``size`` (height, width)."""
    patches = torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=index.device)
    patches[index] = True
    patches = patches.reshape(grid)
    return patches.repeat_interleave(size[0] // grid[0], 0).repeat_interleave(size[1] // grid[1], 1)
