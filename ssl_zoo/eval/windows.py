"""Windows that slide over images larger than the encoder's, and the mean of their outputs (mmsegmentation's inference).

The shorter side of an image is resized to that of the window, and windows of one size are slid over the longer one. The
last one ends at the edge.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Corner = tuple[int, int]  # top, left


def covering_size(height: int, width: int, window: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the image's aspect, up to rounding, that a window fits into."""
    scale = max(window[0] / height, window[1] / width)
    return max(window[0], round(height * scale)), max(window[1], round(width * scale))


def corners(size: tuple[int, int], window: tuple[int, int], stride: float) -> Sequence[Corner]:
    """Return the corners of windows that cover an image of ``size``, row by row.

    Args:
        stride: distance of two windows as a fraction of their side; rounded down to pixels, at least one.
    """
    tops, lefts = (_starts(*lengths, max(1, int(lengths[1] * stride))) for lengths in zip(size, window, strict=True))
    return [(top, left) for top in tops for left in lefts]


def _starts(length: int, window: int, step: int) -> Sequence[int]:
    count = -(-(length - window) // step) + 1
    return [min(number * step, length - window) for number in range(count)]


def averaged(
    outputs: Float[Tensor, "n C h w"], places: Sequence[Corner], window: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "1 C H W"]:
    """Upsample the outputs of windows to their pixels, and average at each pixel those of all windows that show it."""
    total, count = outputs.new_zeros(1, outputs.shape[1], *size), outputs.new_zeros(size)
    for of_window, (top, left) in zip(outputs, places, strict=True):
        rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
        total[..., rows, columns] += F.interpolate(of_window[None], window, mode="bilinear", align_corners=False)
        count[rows, columns] += 1
    return total.div_(count)


def cut(image: Float[Tensor, "C H W"], places: Sequence[Corner], window: tuple[int, int]) -> Float[Tensor, "n C h w"]:
    """Return the windows of an image."""
    return torch.stack([image[:, top : top + window[0], left : left + window[1]] for top, left in places])
