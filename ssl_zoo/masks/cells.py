"""SimMIM's masks (arXiv 2111.09886, sec. 3.2): random square cells of several patches."""

import math
from dataclasses import dataclass

import torch

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.subsets import check_num_masked, masks_of, random_subset
from ssl_zoo.settings import setting


@dataclass
class CellsConfig(MasksConfig):
    """The defaults are those of arXiv 2111.09886, sec. 4.1: cells of 32 pixels, with patches of 16."""

    mask_ratio: float = setting(0.6, "masked cells as a fraction of all cells, rounded up", above=0, below=1)
    mask_patch_size: int = setting(2, "side of a square cell in patches; SimMIM: 32 px, 2 patches of 16", at_least=1)


@MASKS.register("cells", CellsConfig)
class CellsGenerator(MaskGenerator):
    """SimMIM's masks: random square cells of several patches are masked; the context is the rest."""

    config: CellsConfig

    def __init__(self, config: CellsConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        side = config.mask_patch_size
        if grid[0] % side or grid[1] % side:
            common = math.gcd(*grid)
            possible = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
            raise ValueError(f"masks.mask_patch_size={side} does not divide {self._shape}; possible here: {possible}")
        self._cells = (grid[0] // side, grid[1] // side)
        num_cells = self._cells[0] * self._cells[1]
        self._num_masked = math.ceil(num_cells * config.mask_ratio - 1e-9)
        cells = f"cells of {side}x{side} patches on {self._shape}"
        check_num_masked(config.mask_ratio, self._num_masked, num_cells, cells)

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        candidates = torch.ones(batch_size, self._cells[0] * self._cells[1], dtype=torch.bool)
        chosen = random_subset(candidates, self._num_masked, generator)
        cells = torch.zeros_like(candidates).scatter_(1, chosen, True).view(batch_size, *self._cells)
        side = self.config.mask_patch_size
        masked = cells.repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1)
        return masks_of(masked, generator)
