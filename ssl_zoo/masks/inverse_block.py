"""data2vec 2.0's inverse block masks (arXiv 2212.07525, sec. 3.3): small blocks are kept, several masks per image."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.subsets import check_both_sides, check_fraction, first_subset, part_of, random_subset
from ssl_zoo.settings import setting


@dataclass
class InverseBlockConfig(MasksConfig):
    """Defaults: the reference's ViT-B; ViT-L and ViT-H hide 0.75 with surplus_fraction 0.1."""

    mask_ratio: float = setting(0.8, "masked patches as a fraction of the grid; the seen ones are rounded down")
    surplus_fraction: float = setting(0.07, "area of the drawn blocks beyond the seen fraction, for their overlaps")
    block_side: int = setting(3, "side of a seen block in patches")
    num_masks: int = setting(16, "masks per image, each with a context and a target block of its own")
    compat: bool = setting(
        False, "cut blocks at the border as the reference does, so that border patches are seen less"
    )

    def __post_init__(self) -> None:
        check_fraction("masks.mask_ratio", self.mask_ratio)
        if self.surplus_fraction < 0:
            raise ValueError(f"masks.surplus_fraction={self.surplus_fraction} must not be negative")
        for name in ("block_side", "num_masks"):
            if getattr(self, name) < 1:
                raise ValueError(f"masks.{name}={getattr(self, name)} must be at least 1")


@MASKS.register("inverse_block", InverseBlockConfig)
class InverseBlockGenerator(MaskGenerator):
    """data2vec 2.0's masks: context c is a few small blocks, target c all other patches (Pairing.zip).

    Blocks are drawn with replacement; single patches are then dropped or added at random until the number is exact.
    With ``num_masks=1`` the masks have ``masked`` as well.

    Differs from the reference: a block that reaches over the border goes on at the opposite one, so that every patch is
    seen equally often. In the reference (``compat``) it is cut, and border patches are seen less.
    """

    config: InverseBlockConfig

    def __init__(self, config: InverseBlockConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        side, shape = config.block_side, f"{grid[0]}x{grid[1]}"
        if side > min(grid):
            raise ValueError(f"masks.block_side={side} exceeds the {shape} grid; use {min(grid)} or less")
        seen_fraction = 1 - config.mask_ratio
        self._num_seen = part_of(self.num_patches, seen_fraction)
        num_hidden = self.num_patches - self._num_seen
        check_both_sides(
            "masks.mask_ratio",
            config.mask_ratio,
            num_hidden,
            self.num_patches,
            f"patches of the {shape} grid",
        )
        self._num_blocks = part_of(self.num_patches, (seen_fraction + config.surplus_fraction) / side**2)
        if not self._num_blocks:
            raise ValueError(
                f"masks.block_side={side}: not one block of {side}x{side} patches fits into the seen "
                f"{self._num_seen} of {self.num_patches} patches (masks.mask_ratio={config.mask_ratio}, "
                f"masks.surplus_fraction={config.surplus_fraction}); use smaller blocks or hide less"
            )

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        num_masks = self.config.num_masks
        blocks = self.draw_blocks(batch_size * num_masks, generator)
        context = random_subset(blocks, self._num_seen, generator)
        masked = torch.ones_like(blocks).scatter_(1, context, False)
        targets = first_subset(masked, self.num_patches - self._num_seen)
        context, targets = (index.unflatten(0, (batch_size, num_masks)) for index in (context, targets))
        return Masks(context, targets, Pairing.zip, masked if num_masks == 1 else None)

    def draw_blocks(self, num_masks: int, generator: torch.Generator) -> Bool[Tensor, "R N"]:
        """True where a block lies, before the number of patches is made exact."""
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
