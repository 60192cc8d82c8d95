"""Pictures of masks: what the encoder sees and what is predicted."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.utils import make_grid

from ssl_zoo.masks.base import Masks

_GREY = 0.5
_PANEL_PIXELS = 96  # smaller images are enlarged to about this height


def draw_masks(
    images: Float[Tensor, "B 3 H W"], masks: Masks, grid: tuple[int, int], max_images: int = 8
) -> Float[Tensor, "3 rows columns"]:
    """One row per image: the image, each context block, each target block; everything else is grey.

    Args:
        images: values in 0..1.
        grid: patch rows and columns.
    """
    panels = []
    for i in range(min(max_images, images.shape[0])):
        seen = list(masks.context[i]) if masks.hidden is None else [torch.nonzero(~masks.hidden[i]).flatten()]
        visible = torch.stack([pixel_mask(block, grid, images.shape[-2:]) for block in [*seen, *masks.targets[i]]])
        panels += [images[i], *torch.where(visible[:, None], images[i], torch.full_like(images[i], _GREY))]
    factor = max(1, _PANEL_PIXELS // images.shape[-2])
    enlarged = torch.stack(panels).clamp(0, 1).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    per_row = len(panels) // min(max_images, images.shape[0])
    return make_grid(enlarged, nrow=per_row, padding=2, pad_value=1.0)


def pixel_mask(index: Int[Tensor, "K"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """True on the pixels of the patches ``index`` of an image of ``size`` (height, width)."""
    patches = torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=index.device)
    patches[index] = True
    patches = patches.reshape(grid)
    return patches.repeat_interleave(size[0] // grid[0], 0).repeat_interleave(size[1] // grid[1], 1)
