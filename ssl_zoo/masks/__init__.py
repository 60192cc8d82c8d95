"""Mask generators choose which patches of a view are visible and which are predicted."""

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.plot import plot_masks
