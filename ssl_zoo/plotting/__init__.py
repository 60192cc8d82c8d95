"""Figures of images, masks and features: a row per image, a titled column per panel, a legend."""

from ssl_zoo.plotting.colours import (
    BLANK,
    GREY,
    PrincipalColours,
    as_rgb,
    map_colours,
    on_grey,
    patch_colours,
    patch_set,
    similarity_colours,
)
from ssl_zoo.plotting.drawing import draw, ramp_bytes, to_bytes
from ssl_zoo.plotting.figure import Column, Figure, Ramp, Swatch, crop_columns
