"""BEiT's block masks (arXiv 2106.08254, algorithm 1): rectangles are masked one after the other."""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.rectangles import MIN_FITTING, Persistence, RectanglePlacer, check_aspect
from ssl_zoo.masks.subsets import check_both_sides, check_fraction, masks_of, part_of, random_subset
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


class Shortfall(Enum):
    """What follows when no further block fits and patches are still to be masked."""

    fill = "fill"  # single patches at random complete the number
    retry = "retry"  # blocks are tried until the number is exact (CAE)
    keep = "keep"  # nothing: images hide different numbers of patches (BEiT, data2vec)


@dataclass
class BlockwiseConfig(MasksConfig):
    """Defaults: data2vec's 120 of 196 patches; BEiT hides 75, CAE 98 with shortfall=retry."""

    mask_ratio: float = setting(0.6125, "masked patches as a fraction of the grid, rounded down")
    min_block_area: int = setting(16, "least area of a drawn block")
    max_block_patches: int | None = setting(None, "largest area of a drawn block; null sets no limit")
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width of a block, [low, high], drawn log-uniformly")
    shortfall: Shortfall = setting(Shortfall.fill, "when no block fits any more: fill, retry, keep (ragged masks)")
    compat: bool = setting(False, "a block must be smaller than the grid in both directions, as in the reference codes")

    def __post_init__(self) -> None:
        check_fraction("masks.mask_ratio", self.mask_ratio)
        if self.min_block_area < 1:
            raise ValueError(f"masks.min_block_area={self.min_block_area} must be at least 1")
        if self.max_block_patches is not None and self.max_block_patches < self.min_block_area:
            raise ValueError(
                f"masks.max_block_patches={self.max_block_patches} is below masks.min_block_area={self.min_block_area}"
            )
        check_aspect("masks.block_aspect", self.block_aspect)


@MASKS.register("blockwise", BlockwiseConfig)
class BlockwiseGenerator(MaskGenerator):
    """BEiT's masks: overlapping rectangles are masked until the number is met; the context is the rest.

    A rectangle is masked if it adds at least one patch and no more than are still to be masked; ten are tried for each
    block. Whole rectangles reach the centre more often than the border, here as in the reference.

    Differs from the reference: the number is exact, and a block may span the grid. ``shortfall=keep`` with ``compat``
    is BEiT's sampler and ``shortfall=retry`` with ``compat`` CAE's.
    """

    config: BlockwiseConfig

    def __init__(self, config: BlockwiseConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_hidden = part_of(self.num_patches, config.mask_ratio)
        patches = f"patches of the {grid[0]}x{grid[1]} grid"
        check_both_sides("masks.mask_ratio", config.mask_ratio, self._num_hidden, self.num_patches, patches)
        most = self.num_patches if config.max_block_patches is None else config.max_block_patches
        aspect = (config.block_aspect[0], config.block_aspect[1])
        self._placer = RectanglePlacer(grid, config.min_block_area, most, aspect, smaller=config.compat)
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masked = self.place_blocks(batch_size, generator)
        if self.config.shortfall is not Shortfall.keep:
            chosen = random_subset(masked, self._num_hidden, generator)
            masked = torch.zeros_like(masked).scatter_(1, chosen, True)
        return masks_of(masked, generator)

    def place_blocks(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """True where a block lies; images may have fewer than they should hide."""
        goals = torch.full((batch_size,), self._num_hidden)
        # An image without any block goes on in any case: it must have something to predict.
        persistence = Persistence.always if self.config.shortfall is Shortfall.retry else Persistence.until_one
        return self._placer.place(goals, persistence, generator)

    def _check_geometry(self) -> None:
        """Refuse blocks of which too few fit: the masks would hardly have blocks."""
        config, grid = self.config, f"the {self.grid[0]}x{self.grid[1]} grid"
        if config.min_block_area > self._num_hidden:
            raise ValueError(
                f"masks.min_block_area={config.min_block_area} exceeds the {self._num_hidden} patches that "
                f"masks.mask_ratio={config.mask_ratio} hides on {grid}; use {self._num_hidden} or less"
            )
        share = self._placer.share_that_fits(self._num_hidden, generator_for("blockwise feasibility"))
        if share < MIN_FITTING:
            raise ValueError(
                f"{share:.1%} of the blocks fit {grid} with masks.min_block_area={config.min_block_area}, "
                f"masks.max_block_patches={config.max_block_patches} and masks.block_aspect="
                f"[{config.block_aspect[0]:.3g}, {config.block_aspect[1]:.3g}]; use smaller blocks, another aspect or "
                "a finer patch (backbone.patch_size)"
            )
