"""Random crops and flips of image tensors on their device, sampled per image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def random_crops(
    images: Float[Tensor, "B _ H W"], crop_scale: Sequence[float], generator: torch.Generator
) -> Float[Tensor, "B _ H W"]:
    """Crop each image at random, resize the crop to the image's size, and flip it with probability 1/2.

    Crops keep the image's aspect ratio, are resampled bilinearly, and lie within the image.

    Args:
        crop_scale: area of the crop as a fraction of the image, [low, high].
        generator: a generator on the CPU.
    """
    samples = torch.rand(len(images), 4, generator=generator)
    side = (crop_scale[0] + (crop_scale[1] - crop_scale[0]) * samples[:, 0]).sqrt()
    flip = torch.where(samples[:, 1] < 0.5, -1.0, 1.0)
    centre = (1 - side)[:, None] * (2 * samples[:, 2:] - 1)
    boxes = torch.zeros(len(images), 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, :, 2] = side * flip, side, centre
    grid = F.affine_grid(boxes.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)
