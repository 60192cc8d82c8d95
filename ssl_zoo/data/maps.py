"""Maps are labels per pixel: classes or depths, cropped and flipped like the image that they belong to.

A class map is uint8 with ``IGNORED`` where the class is unknown. A depth map is float32 with 0 where the depth is
unknown. Maps are never interpolated: the mean of two classes, or of two depths across an edge, means nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

IGNORED = 255  # of class maps


@dataclass(frozen=True)
class MapSet:
    """The kind of maps that a source has of its images.

    Attributes:
        num_classes: of class maps; 0 for depths.
        classes: their names; empty if unknown.
        max_depth: depths beyond it are unknown; 0 for classes.
    """

    num_classes: int = 0
    classes: Sequence[str] = ()
    max_depth: float = 0.0

    @property
    def unknown(self) -> Shaped[Tensor, ""]:
        """Return the value of pixels that are neither trained on nor scored, in the maps' dtype."""
        return torch.tensor(IGNORED, dtype=torch.uint8) if self.num_classes else torch.tensor(0.0)


def crop_maps(
    maps: Sequence[Shaped[Tensor, "_ _"]], boxes: Int[Tensor, "B 4"], flipped: Bool[Tensor, "B"], size: tuple[int, int]
) -> Shaped[Tensor, "B h w"]:
    """Resize one crop of each map to the nearest pixels, mirrored left to right where ``flipped``.

    Args:
        boxes: top, left, height and width of each crop.
        size: height and width of the results.
    """
    rows, columns = (_nearest(boxes[:, axis], boxes[:, axis + 2], size[axis]) for axis in (0, 1))
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    return torch.stack([values[y[:, None], x] for values, y, x in zip(maps, rows, columns, strict=True)])


def _nearest(start: Int[Tensor, "B"], length: Int[Tensor, "B"], out_size: int) -> Int[Tensor, "B out"]:
    """Return the pixels under the centres of the resized crop's pixels."""
    return start[:, None] + (2 * torch.arange(out_size) + 1) * length[:, None] // (2 * out_size)
