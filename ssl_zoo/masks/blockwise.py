"""BEiT's blockwise masks (arXiv 2106.08254, algorithm 1): rectangles are masked one after the other."""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.rectangles import MIN_FITTING, Persistence, RectanglePlacer
from ssl_zoo.masks.subsets import check_num_masked, floor_fraction, masks_of, random_subset
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


class Shortfall(Enum):
    """What happens when no further block fits although more patches must be masked."""

    fill = "fill"  # random single patches complete the number
    retry = "retry"  # blocks are tried until the number is exact (CAE)
    keep = "keep"  # nothing: the number of masked patches varies between images (BEiT, data2vec)


@dataclass
class BlockwiseConfig(MasksConfig):
    """The default is data2vec's 120 of 196 patches; BEiT masks 75, and CAE 98 with shortfall=retry."""

    mask_ratio: float = setting(0.6125, "masked patches as a fraction of the grid, rounded down", above=0, below=1)
    min_block_area: int = setting(16, "least area of a sampled block in patches", at_least=1)
    max_block_area: int | None = setting(None, "largest area of a sampled block in patches; null sets no limit")
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width, log-uniform in [low, high]", above=0, length=2)
    shortfall: Shortfall = setting(Shortfall.fill, "when no further block fits: fill, retry, keep (ragged masks)")
    compat: bool = setting(False, "blocks must be smaller than the grid in both directions, as in the reference codes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ranges("block_aspect")
        if self.max_block_area is not None and self.max_block_area < self.min_block_area:
            raise ValueError(
                f"masks.max_block_area={self.max_block_area} is below masks.min_block_area={self.min_block_area}"
            )


@MASKS.register("blockwise", BlockwiseConfig)
class BlockwiseGenerator(MaskGenerator):
    """BEiT's masks: overlapping rectangles are masked until the mask ratio is reached; the context is the rest.

    ``RectanglePlacer`` describes the sampling. Differs from the reference: the number of masked patches is exact, and a
    block may span the grid. ``shortfall=keep`` with ``compat`` is BEiT's sampler, ``shortfall=retry`` with ``compat``
    CAE's.
    """

    config: BlockwiseConfig

    def __init__(self, config: BlockwiseConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_masked = floor_fraction(self.num_patches, config.mask_ratio)
        check_num_masked(config.mask_ratio, self._num_masked, self.num_patches, f"patches of {self._shape}")
        max_area = self.num_patches if config.max_block_area is None else config.max_block_area
        self._placer = RectanglePlacer(
            grid, config.min_block_area, max_area, tuple(config.block_aspect), smaller=config.compat
        )
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masked = self.place_blocks(batch_size, generator)
        if self.config.shortfall is not Shortfall.keep:
            chosen = random_subset(masked, self._num_masked, generator)
            masked = torch.zeros_like(masked).scatter_(1, chosen, True)
        return masks_of(masked, generator)

    def place_blocks(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """Return True at the patches of blocks; images may have fewer masked patches than their goal."""
        goals = torch.full((batch_size,), self._num_masked)
        # An image without any block is always retried: it needs something to predict.
        persistence = Persistence.always if self.config.shortfall is Shortfall.retry else Persistence.until_one
        return self._placer.place(goals, persistence, generator)

    def _check_geometry(self) -> None:
        """Refuse blocks that rarely fit: the masks would hardly contain any."""
        config = self.config
        if config.min_block_area > self._num_masked:
            raise ValueError(
                f"masks.min_block_area={config.min_block_area} exceeds the {self._num_masked} patches that "
                f"masks.mask_ratio={config.mask_ratio} masks on {self._shape}; use {self._num_masked} or less"
            )
        fitting = self._placer.fitting_fraction(self._num_masked, generator_for("blockwise feasibility"))
        if fitting < MIN_FITTING:
            raise ValueError(
                f"{fitting:.1%} of the blocks fit {self._shape} with masks.min_block_area={config.min_block_area}, "
                f"masks.max_block_area={config.max_block_area} and masks.block_aspect="
                f"[{config.block_aspect[0]:.3g}, {config.block_aspect[1]:.3g}]; use smaller blocks, another aspect or "
                "a finer patch (backbone.patch_size)"
            )
