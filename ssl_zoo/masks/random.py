"""MAE's masks (arXiv 2111.06377): each patch hidden with the same chance, the others seen."""

from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.subsets import first_subset, random_subset
from ssl_zoo.registry import setting


@dataclass
class RandomConfig(MasksConfig):
    """Random masks."""

    mask_ratio: float = setting(0.75, "hidden patches as a fraction of the grid")

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"masks.mask_ratio={self.mask_ratio} must lie between 0 and 1")


@MASKS.register("random", RandomConfig)
class Random(MaskGenerator):
    """A random subset of patches is seen, all others are predicted together."""

    config: RandomConfig

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        num_visible = int(self.num_patches * (1 - self.config.mask_ratio))
        everywhere = torch.ones(batch_size, self.num_patches, dtype=torch.bool)
        context = random_subset(everywhere, num_visible, generator)
        hidden = everywhere.scatter(1, context, False)
        targets = first_subset(hidden, self.num_patches - num_visible)
        return Masks(context[:, None], targets[:, None])
