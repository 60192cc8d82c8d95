"""Mixup and cutmix of neighbours in a batch, the same for any number of ranks."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ssl_zoo.seeding import seed_for


class Mix:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899), each with probability 1/2 where both are on.

    One share is sampled per step, as in MAE's recipe. Differs from the reference: an image is mixed with its neighbour
    and not with the one at the mirrored place of the batch, so that both are on one rank. Batches are in random order.

    Args:
        mixup, cutmix: parameter of the beta distribution of the share; 0 = off.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.kinds = [kind for kind in (("mixup", mixup), ("cutmix", cutmix)) if kind[1]]
        self.num_classes, self.seed = num_classes, seed

    def __call__(
        self, images: Float[Tensor, "b C H W"], labels: Int[Tensor, "b"], step: int
    ) -> tuple[Float[Tensor, "b C H W"], Float[Tensor, "b classes"]]:
        """Mix the images 2i and 2i + 1 with each other, and their labels; the last of an odd number stays as it is."""
        targets = one_hot(labels, self.num_classes).float()
        if not self.kinds:
            return images, targets
        generator = np.random.default_rng(seed_for(self.seed, "mix", step))
        kind, alpha = self.kinds[generator.integers(len(self.kinds))]
        share = float(generator.beta(alpha, alpha))
        neighbour = torch.arange(len(images), device=images.device) ^ 1
        neighbour.clamp_(max=len(images) - 1)
        others = images[neighbour]
        if kind == "mixup":
            mixed = others.lerp(images, share)
        else:
            top, bottom, left, right = _box(*images.shape[-2:], 1 - share, generator)
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        return mixed, targets[neighbour].lerp(targets, share)


def _box(height: int, width: int, area: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Sample a box of an area, as a fraction, and of the image's aspect; what lies outside the image is cut off."""
    half_height, half_width = (int(side * area**0.5) // 2 for side in (height, width))
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return max(0, y - half_height), min(height, y + half_height), max(0, x - half_width), min(width, x + half_width)
