"""MAE's random masks (arXiv 2111.06377, sec. 3): every patch is masked with the same probability."""

from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.subsets import check_num_masked, floor_fraction, masks_of, random_subset
from ssl_zoo.settings import setting


@dataclass
class RandomConfig(MasksConfig):
    """The default is that of arXiv 2111.06377, sec. 4.1. I-JEPA's ablation (arXiv 2301.08243, table 6) masks 0.6."""

    mask_ratio: float = setting(0.75, "masked fraction of the grid; visible count rounded down", above=0, below=1)


@MASKS.register("random", RandomConfig)
class RandomGenerator(MaskGenerator):
    """MAE's masks: a fixed number of patches per image, every subset equally likely; the context is the rest.

    Differs from the reference: visible patches keep their order on the grid, which no output depends on.
    """

    config: RandomConfig

    def __init__(self, config: RandomConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_masked = self.num_patches - floor_fraction(self.num_patches, 1 - config.mask_ratio)
        check_num_masked(config.mask_ratio, self._num_masked, self.num_patches, f"patches of {self._shape}")

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        candidates = torch.ones(batch_size, self.num_patches, dtype=torch.bool)
        chosen = random_subset(candidates, self._num_masked, generator)
        return masks_of(torch.zeros_like(candidates).scatter_(1, chosen, True), generator)
