"""Mask generators: which patches are seen and which are predicted."""

from ssl_zoo.masks import multiblock, random  # noqa: F401  (they register themselves)
from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.draw import draw_masks

__all__ = ["MASKS", "MaskGenerator", "Masks", "MasksConfig", "Pairing", "draw_masks"]
