"""BEiT's block masks (arXiv 2106.08254, algorithm 1): rectangles are hidden one after the other."""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.rectangles import MIN_FITTING, Persistence, RectanglePlacer, check_aspect
from ssl_zoo.masks.subsets import check_both_sides, check_fraction, masks_of, part_of, random_subset
from ssl_zoo.registry import setting
from ssl_zoo.seeding import generator_for


class Shortfall(Enum):
    """What follows when no further block fits and patches are still to be hidden."""

    fill = "fill"  # single patches at random complete the number
    retry = "retry"  # blocks are tried until the number is exact (CAE)
    keep = "keep"  # nothing: images hide different numbers of patches (BEiT, data2vec)


@dataclass
class BlockwiseConfig(MasksConfig):
    """Defaults: data2vec's 120 of 196 patches; BEiT hides 75, CAE 98 with shortfall=retry."""

    hidden_fraction: float = setting(0.6125, "hidden patches as a fraction of the grid, rounded down")
    min_block_patches: int = setting(16, "least area of a drawn block")
    max_block_patches: int | None = setting(None, "largest area of a drawn block; null sets no limit")
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width of a block, [low, high], drawn log-uniformly")
    shortfall: Shortfall = setting(Shortfall.fill, "when no block fits any more: fill, retry, keep (ragged masks)")
    compat: bool = setting(False, "a block must be smaller than the grid in both directions, as in the reference codes")

    def __post_init__(self) -> None:
        check_fraction("masks.hidden_fraction", self.hidden_fraction)
        if self.min_block_patches < 1:
            raise ValueError(f"masks.min_block_patches={self.min_block_patches} must be at least 1")
        if self.max_block_patches is not None and self.max_block_patches < self.min_block_patches:
            raise ValueError(
                f"masks.max_block_patches={self.max_block_patches} is below "
                f"masks.min_block_patches={self.min_block_patches}"
            )
        check_aspect("masks.block_aspect", self.block_aspect)


@MASKS.register("blockwise", BlockwiseConfig)
class BlockwiseGenerator(MaskGenerator):
    """BEiT's masks: overlapping rectangles are hidden until the number is met; the context is the rest.

    A rectangle is hidden if it adds at least one patch and no more than are still to be hidden; ten are tried for each
    block. Whole rectangles reach the centre more often than the border, here as in the reference.

    Differs from the reference: the number is exact, and a block may span the grid. ``shortfall=keep`` with ``compat``
    is BEiT's sampler and ``shortfall=retry`` with ``compat`` CAE's.
    """

    config: BlockwiseConfig

    def __init__(self, config: BlockwiseConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_hidden = part_of(self.num_patches, config.hidden_fraction)
        patches = f"patches of the {grid[0]}x{grid[1]} grid"
        check_both_sides("masks.hidden_fraction", config.hidden_fraction, self._num_hidden, self.num_patches, patches)
        most = self.num_patches if config.max_block_patches is None else config.max_block_patches
        aspect = (config.block_aspect[0], config.block_aspect[1])
        self._placer = RectanglePlacer(grid, config.min_block_patches, most, aspect, smaller=config.compat)
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        hidden = self.place_blocks(batch_size, generator)
        if self.config.shortfall is not Shortfall.keep:
            chosen = random_subset(hidden, self._num_hidden, generator)
            hidden = torch.zeros_like(hidden).scatter_(1, chosen, True)
        return masks_of(hidden, generator)

    def place_blocks(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """True where a block lies; images may have fewer than they should hide."""
        goals = torch.full((batch_size,), self._num_hidden)
        # An image without any block goes on in any case: it must have something to predict.
        persistence = Persistence.always if self.config.shortfall is Shortfall.retry else Persistence.until_one
        return self._placer.place(goals, persistence, generator)

    def _check_geometry(self) -> None:
        """Refuse blocks of which too few fit: the masks would hardly have blocks."""
        config, grid = self.config, f"the {self.grid[0]}x{self.grid[1]} grid"
        if config.min_block_patches > self._num_hidden:
            raise ValueError(
                f"masks.min_block_patches={config.min_block_patches} exceeds the {self._num_hidden} patches that "
                f"masks.hidden_fraction={config.hidden_fraction} hides on {grid}; use {self._num_hidden} or less"
            )
        share = self._placer.share_that_fits(self._num_hidden, generator_for("blockwise feasibility"))
        if share < MIN_FITTING:
            raise ValueError(
                f"{share:.1%} of the blocks fit {grid} with masks.min_block_patches={config.min_block_patches}, "
                f"masks.max_block_patches={config.max_block_patches} and masks.block_aspect="
                f"[{config.block_aspect[0]:.3g}, {config.block_aspect[1]:.3g}]; use smaller blocks, another aspect or "
                "a finer patch (backbone.patch_size)"
            )
