"""Mask generators: they decide which patches are visible and which are predicted."""

from ssl_zoo.masks import (  # noqa: F401  (they register themselves)
    blockwise,
    cells,
    inverse_block,
    multiblock,
    random,
    random_ratio,
    rasterized,
)
from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.plot import plot_masks

__all__ = ["MASKS", "MaskGenerator", "Masks", "MasksConfig", "Pairing", "plot_masks"]
