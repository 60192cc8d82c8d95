"""iBOT's masks (arXiv 2111.07832, sec. 3.2 and appendix B): blocks up to a random mask ratio, or no mask."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.rectangles import MIN_FITTING, Persistence, RectanglePlacer
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


@dataclass
class RandomRatioConfig(MasksConfig):
    """The defaults are those of the published iBOT runs (pred_ratio 0 and 0.3, pred_ratio_var 0 and 0.2)."""

    mask_ratio: list[float] = setting([0.1, 0.5], "range of the image's mask ratio limit", above=0, below=1, length=2)
    unmasked: float = setting(0.5, "probability that an image is not masked", at_least=0, at_most=1)
    min_block_area: int | None = setting(None, "least block area in patches; null: (shorter side // 3)^2", at_least=1)
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width, log-uniform in [low, high]", above=0, length=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ranges("mask_ratio", "block_aspect")


@MASKS.register("random_ratio", RandomRatioConfig)
class RandomRatioGenerator(MaskGenerator):
    """iBOT's masks: BEiT's rectangles up to a mask ratio that is sampled per image, or no mask.

    Only ``masked`` is set: since some images have no masked patches, ``context`` and ``targets`` are empty. The masks
    suit methods with mask tokens.
    """

    config: RandomRatioConfig

    def __init__(self, config: RandomRatioConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        min_area = max(1, (min(grid) // 3) ** 2 if config.min_block_area is None else config.min_block_area)
        self._placer = RectanglePlacer(grid, min_area, self.num_patches, tuple(config.block_aspect), smaller=True)
        highest = config.mask_ratio[1] * self.num_patches
        fitting = self._placer.fitting_fraction(highest, generator_for("random ratio feasibility"))
        if fitting < MIN_FITTING:
            raise ValueError(
                f"{fitting:.1%} of the blocks fit {self._shape} with masks.mask_ratio="
                f"{config.mask_ratio} and at least {min_area} patches; use a larger fraction, a lower "
                "masks.min_block_area or a finer patch (backbone.patch_size)"
            )

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masked = self._placer.place(self._goals(batch_size, generator), Persistence.never, generator)
        nothing = torch.zeros(batch_size, 1, 0, dtype=torch.int64)
        return Masks(nothing, nothing.clone(), masked=masked)

    def _goals(self, batch_size: int, generator: torch.Generator) -> Float[Tensor, "B"]:
        """Sample the largest number of masked patches of each image, not rounded, as in the reference."""
        (low, high), num_patches = self.config.mask_ratio, self.num_patches
        chance, position = torch.rand(2, batch_size, generator=generator)
        return (low + (high - low) * position) * num_patches * (chance >= self.config.unmasked)
