"""iBOT's masks (arXiv 2111.07832, sec. 3.2 and appendix B): blocks that hide a random part of an image, or nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.rectangles import MIN_FITTING, Persistence, RectanglePlacer, check_aspect
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


@dataclass
class RandomRatioConfig(MasksConfig):
    """Defaults: the published iBOT runs (pred_ratio 0 and 0.3, pred_ratio_var 0 and 0.2)."""

    mask_ratio: list[float] = setting(
        [0.1, 0.5], "most patches that an image hides, as a fraction of the grid; drawn uniformly from [low, high]"
    )
    unmasked: float = setting(0.5, "probability that an image hides nothing")
    min_block_area: int | None = setting(
        None, "least area of a drawn block; null: the square of a third of the grid's shorter side"
    )
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width of a block, [low, high], drawn log-uniformly")

    def __post_init__(self) -> None:
        if len(self.mask_ratio) != 2 or not 0 < self.mask_ratio[0] <= self.mask_ratio[1] < 1:
            raise ValueError(f"masks.mask_ratio={self.mask_ratio} must be [low, high] with 0 < low <= high < 1")
        if not 0 <= self.unmasked <= 1:
            raise ValueError(f"masks.unmasked={self.unmasked} is a probability, so it must lie in [0, 1]")
        if self.min_block_area is not None and self.min_block_area < 1:
            raise ValueError(f"masks.min_block_area={self.min_block_area} must be at least 1, or null")
        check_aspect("masks.block_aspect", self.block_aspect)


@MASKS.register("random_ratio", RandomRatioConfig)
class RandomRatioGenerator(MaskGenerator):
    """iBOT's masks: BEiT's rectangles up to a part of the patches that is drawn for every image, or no mask at all.

    ``masked`` alone tells what is masked; ``context`` and ``targets`` are empty, since images that hide nothing leave
    no number of patches that all have in common. They serve methods that replace patches and need no masked ones.
    """

    config: RandomRatioConfig

    def __init__(self, config: RandomRatioConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        least = (min(grid) // 3) ** 2 if config.min_block_area is None else config.min_block_area
        aspect = (config.block_aspect[0], config.block_aspect[1])
        self._placer = RectanglePlacer(grid, max(1, least), self.num_patches, aspect, smaller=True)
        highest = config.mask_ratio[1] * self.num_patches
        share = self._placer.share_that_fits(highest, generator_for("random ratio feasibility"))
        if share < MIN_FITTING:
            raise ValueError(
                f"{share:.1%} of the blocks fit the {grid[0]}x{grid[1]} grid with masks.mask_ratio="
                f"{config.mask_ratio} and at least {max(1, least)} patches; use a larger fraction, a lower "
                "masks.min_block_area or a finer patch (backbone.patch_size)"
            )

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masked = self._placer.place(self._goals(batch_size, generator), Persistence.never, generator)
        nothing = torch.zeros(batch_size, 1, 0, dtype=torch.int64)
        return Masks(nothing, nothing.clone(), masked=masked)

    def _goals(self, batch_size: int, generator: torch.Generator) -> Float[Tensor, "B"]:
        """Patches that each image may hide, not rounded, as in the reference."""
        (low, high), num_patches = self.config.mask_ratio, self.num_patches
        chance, part = torch.rand(2, batch_size, generator=generator)
        return (low + (high - low) * part) * num_patches * (chance >= self.config.unmasked)
