"""Quadrant masks of I-JEPA's ablation (arXiv 2301.08243, table 6, "rasterized")."""

from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.blocks import BlockSize, block_patches


@dataclass
class RasterizedConfig(MasksConfig):
    """Nothing to choose: a quarter of the image predicts the other three."""


@MASKS.register("rasterized", RasterizedConfig)
class RasterizedGenerator(MaskGenerator):
    """The four quadrants of the image: one, drawn per image, is the context, the others are the targets."""

    config: RasterizedConfig

    def __init__(self, config: RasterizedConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        if grid[0] % 2 or grid[1] % 2:
            raise ValueError(
                f"masks=rasterized needs an even number of patch rows and columns, the grid is {grid[0]}x{grid[1]}; "
                "change backbone.image_size or backbone.patch_size"
            )
        size = BlockSize(grid[0] // 2, grid[1] // 2)
        top, left = torch.tensor([0, 0, size.height, size.height]), torch.tensor([0, size.width, 0, size.width])
        self._quadrants = block_patches(top[None], left[None], size, grid)[0]
        self._others = torch.tensor([[other for other in range(4) if other != seen] for seen in range(4)])

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        seen = torch.randint(4, (batch_size,), generator=generator)
        context, targets = self._quadrants[seen], self._quadrants[self._others[seen]]
        masked = torch.ones(batch_size, self.num_patches, dtype=torch.bool).scatter_(1, context, False)
        return Masks(context[:, None], targets, masked=masked)
