"""Quadrant masks of I-JEPA's ablation (arXiv 2301.08243, table 6, "rasterized")."""

from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.blocks import BlockSize, patches_in_blocks


@dataclass
class RasterizedConfig(MasksConfig):
    """There are no settings: a quarter of the image predicts the other three."""


@MASKS.register("rasterized", RasterizedConfig)
class RasterizedGenerator(MaskGenerator):
    """One random quadrant of each image is the context, the other three are the targets."""

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
        self._quadrants = patches_in_blocks(top[None], left[None], size, grid)[0]
        self._others = torch.tensor([[other for other in range(4) if other != visible] for visible in range(4)])

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        visible = torch.randint(4, (batch_size,), generator=generator)
        context, targets = self._quadrants[visible], self._quadrants[self._others[visible]]
        masked = torch.ones(batch_size, self.num_patches, dtype=torch.bool).scatter_(1, context, False)
        return Masks(context[:, None], targets, masked=masked)
