"""Augmentations of evaluators beyond those of training views: RandAugment, random erasing, crops on the device."""

import math
import random
import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.seeding import normal_numbers, seed_for

POLICY = re.compile(r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]))*")  # of timm's RandAugment
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm's RandomErasing, which MAE uses
_ERASE_ATTEMPTS = 10


def random_crops(
    images: Float[Tensor, "B _ H W"], crop_scale: Sequence[float], samples: Float[Tensor, "B 4"]
) -> Float[Tensor, "B _ H W"]:
    """Crop each image at random, resize the crop to the image's size, and flip it with probability 1/2.

    Crops keep the image's aspect ratio, are resampled bilinearly, and lie within the image.

    Args:
        crop_scale: area of the crop as a fraction of the image, [low, high].
        samples: random numbers on the CPU, uniform in [0, 1).
    """
    side = (crop_scale[0] + (crop_scale[1] - crop_scale[0]) * samples[:, 0]).sqrt()
    flip = torch.where(samples[:, 1] < 0.5, -1.0, 1.0)
    centre = (1 - side)[:, None] * (2 * samples[:, 2:] - 1)
    boxes = torch.zeros(len(images), 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, :, 2] = side * flip, side, centre
    grid = F.affine_grid(boxes.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)


class RandAugment:
    """RandAugment (arXiv 1909.13719) as timm has it, on images of 1 or 3 channels; a function of a key per image.

    Args:
        policy: timm's notation, e.g. ``rand-m9-mstd0.5-inc1``.
        size: height and width of the images in pixels.
        mean: of the normalisation, whose colour fills what a shift leaves empty.
    """

    def __init__(self, policy: str, size: tuple[int, int], mean: Sequence[float]) -> None:
        from timm.data.auto_augment import (
            rand_augment_transform,  # imports readers of data sets that nothing else needs
        )

        fill = tuple(min(255, round(255 * value)) for value in mean)
        fill = fill if len(fill) == 3 else fill[0]
        settings = {"translate_const": int(min(size) * 0.45), "img_mean": fill, "interpolation": Image.BICUBIC}
        self._transform = rand_augment_transform(policy, settings)

    def __call__(
        self, images: UInt8[Tensor, "B C H W"], keys: Sequence[tuple[int | str, ...]]
    ) -> UInt8[Tensor, "B C H W"]:
        """Augment each image by random numbers that are a function of its key alone."""
        # timm samples from the global generators of Python and NumPy.
        before, before_numpy = random.getstate(), np.random.get_state()
        try:
            return torch.stack(
                [self._augmented(image, seed_for(*key)) for image, key in zip(images, keys, strict=True)]
            )
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)

    def _augmented(self, image: UInt8[Tensor, "C H W"], seed: int) -> UInt8[Tensor, "C H W"]:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        augmented = np.array(self._transform(Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels)))
        return torch.from_numpy(augmented).view(*image.shape[1:], len(image)).permute(2, 0, 1)


def random_erase(
    images: Float[Tensor, "b C H W"], probability: float, generator: torch.Generator, rows: slice, batch_size: int
) -> Float[Tensor, "b C H W"]:
    """Replace a random box of some normalised images by normal noise, per pixel (arXiv 1708.04896).

    Area and aspect are distributed as in timm's RandomErasing: the first of ten sampled boxes that fits, else none.

    Args:
        generator: samples the boxes of the whole batch, so that they don't depend on the number of ranks.
        rows: the rows of the batch that ``images`` are.
    """
    height, width = images.shape[-2:]
    samples = torch.rand(batch_size, 2 * _ERASE_ATTEMPTS + 3, generator=generator)
    noise_seed = int(torch.randint(2**31, (), generator=generator))
    areas, ratios, rest = samples.split([_ERASE_ATTEMPTS, _ERASE_ATTEMPTS, 3], dim=1)
    erased, top, left = rest.unbind(dim=1)
    low, high = _ERASED_AREA
    log_low, log_high = map(math.log, _ERASED_ASPECT)
    area, aspect = (low + (high - low) * areas) * height * width, (log_low + (log_high - log_low) * ratios).exp()
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_height, box_width = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    top, left = (top * (height - box_height + 1)).floor(), (left * (width - box_width + 1)).floor()
    chosen = (erased < probability) & fits.any(dim=1)
    own = chosen[rows].nonzero()[:, 0]
    if len(own) == 0:
        return images
    device, number = images.device, own + rows.start
    y, x = torch.arange(height), torch.arange(width)
    in_rows = (y >= top[number, None]) & (y < (top + box_height)[number, None])
    in_columns = (x >= left[number, None]) & (x < (left + box_width)[number, None])
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None].to(device)
    pixels = torch.arange(images[0].numel(), device=device)
    noise = normal_numbers(torch.tensor(noise_seed, device=device), number.to(device)[:, None], pixels)
    own = own.to(device)
    return images.index_put((own,), torch.where(inside, noise.view(-1, *images.shape[1:]), images[own]))
