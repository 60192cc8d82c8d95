"""data2vec 2.0's inverse block masks (arXiv 2212.07525, sec. 3.3): small visible blocks, several masks per image."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.subsets import check_num_masked, first_subset, floor_fraction, random_subset
from ssl_zoo.settings import setting


@dataclass
class InverseBlockConfig(MasksConfig):
    """The defaults are those of the reference's ViT-B; ViT-L and ViT-H mask 0.75 with surplus_fraction 0.1."""

    mask_ratio: float = setting(0.8, "masked fraction of the grid; visible count rounded down", above=0, below=1)
    surplus_fraction: float = setting(0.07, "block area beyond the visible fraction, since blocks overlap", at_least=0)
    block_side: int = setting(3, "side of a visible block in patches", at_least=1)
    num_masks: int = setting(16, "masks per image, each with its own context and target block", at_least=1)
    compat: bool = setting(False, "cut blocks at the border as the reference: border patches are seen less often")


@MASKS.register("inverse_block", InverseBlockConfig)
class InverseBlockGenerator(MaskGenerator):
    """data2vec 2.0's masks: context c is a few small blocks, target c all other patches (Pairing.zip).

    Blocks are sampled with replacement; single patches are then removed or added at random until the number is exact.
    ``masked`` is set only with ``num_masks=1``.

    Differs from the reference: blocks wrap around the border, so that every patch is equally often visible. In the
    reference (``compat``) they are cut, and border patches are less often visible.
    """

    config: InverseBlockConfig

    def __init__(self, config: InverseBlockConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        side = config.block_side
        if side > min(grid):
            raise ValueError(f"masks.block_side={side} exceeds {self._shape}; use {min(grid)} or less")
        visible_fraction = 1 - config.mask_ratio
        self._num_visible = floor_fraction(self.num_patches, visible_fraction)
        num_masked = self.num_patches - self._num_visible
        check_num_masked(config.mask_ratio, num_masked, self.num_patches, f"patches of {self._shape}")
        self._num_blocks = floor_fraction(self.num_patches, (visible_fraction + config.surplus_fraction) / side**2)
        if not self._num_blocks:
            raise ValueError(
                f"masks.block_side={side}: not one block of {side}x{side} patches fits into the {self._num_visible} "
                f"visible of {self.num_patches} patches (masks.mask_ratio={config.mask_ratio}, "
                f"masks.surplus_fraction={config.surplus_fraction}); use smaller blocks or a lower mask ratio"
            )

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        num_masks = self.config.num_masks
        blocks = self.sample_blocks(batch_size * num_masks, generator)
        context = random_subset(blocks, self._num_visible, generator)
        masked = torch.ones_like(blocks).scatter_(1, context, False)
        targets = first_subset(masked, self.num_patches - self._num_visible)
        context, targets = (index.unflatten(0, (batch_size, num_masks)) for index in (context, targets))
        return Masks(context, targets, Pairing.zip, masked if num_masks == 1 else None)

    def sample_blocks(self, num_masks: int, generator: torch.Generator) -> Bool[Tensor, "R N"]:
        """Return True at the patches of sampled blocks, before the number of patches is made exact."""
        (height, width), side = self.grid, self.config.block_side
        centre = torch.randint(self.num_patches, (num_masks, self._num_blocks, 1, 1), generator=generator)
        offset = torch.arange(side) - side // 2
        rows, columns = centre // width + offset[:, None], centre % width + offset
        if self.config.compat:
            rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        else:
            rows, columns = rows % height, columns % width
        index = (rows * width + columns).flatten(1)
        return torch.zeros(num_masks, self.num_patches, dtype=torch.bool).scatter_(1, index, True)
