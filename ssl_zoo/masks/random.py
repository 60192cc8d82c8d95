"""MAE's random masks (arXiv 2111.06377, sec. 3): every patch is masked with the same probability."""

from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.subsets import check_both_sides, check_fraction, masks_of, part_of, random_subset
from ssl_zoo.settings import setting


@dataclass
class RandomConfig(MasksConfig):
    """Default: arXiv 2111.06377, sec. 4.1. I-JEPA's ablation (arXiv 2301.08243, table 6) hides 0.6."""

    mask_ratio: float = setting(0.75, "masked patches as a fraction of the grid; the seen ones are rounded down")

    def __post_init__(self) -> None:
        check_fraction("masks.mask_ratio", self.mask_ratio)


@MASKS.register("random", RandomConfig)
class RandomGenerator(MaskGenerator):
    """MAE's masks: equally many patches of every image, each subset equally likely; the context is the rest.

    Differs from the reference: seen patches keep their order on the grid, which no output depends on.
    """

    config: RandomConfig

    def __init__(self, config: RandomConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_hidden = self.num_patches - part_of(self.num_patches, 1 - config.mask_ratio)
        patches = f"patches of the {grid[0]}x{grid[1]} grid"
        check_both_sides("masks.mask_ratio", config.mask_ratio, self._num_hidden, self.num_patches, patches)

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        everything = torch.ones(batch_size, self.num_patches, dtype=torch.bool)
        chosen = random_subset(everything, self._num_hidden, generator)
        return masks_of(torch.zeros_like(everything).scatter_(1, chosen, True), generator)
