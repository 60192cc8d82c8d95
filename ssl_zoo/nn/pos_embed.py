"""Position embeddings: fixed 2-D sin-cos tables, and interpolation of learned tables to another grid.

A table has one row per token: first those of prefix tokens, then the patches, row-major on the grid.
"""

from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.machine import float64_device

_BASE = 10_000.0  # longest wavelength over 2 pi, in patches (arXiv 1706.03762, sec. 3.5)


class SincosLayout(Enum):
    """Which coordinate the first half of the channels encodes; the two layouts differ by a swap of the halves."""

    col_first = "col_first"  # MAE, I-JEPA, data2vec 2.0, MoCo v3
    row_first = "row_first"  # CAE, every method of mmpretrain


def sincos_positions(
    grid: tuple[int, int],
    dim: int,
    layout: SincosLayout = SincosLayout.col_first,
    *,
    num_prefix: int = 0,
    device: torch.device | str | None = None,
) -> Float[Tensor, "1 L {dim}"]:
    """Return the fixed 2-D sin-cos table: per axis dim/4 sines, then dim/4 cosines of the integer patch coordinate.

    Coordinates are not scaled by the size of the grid, so the table of another grid is recomputed, never interpolated.
    It is computed in float64, as the published tables were (for MPS on the CPU), and returned in float32.

    Args:
        grid: patch rows and columns.
        num_prefix: rows of zeros for prefix tokens, which come first.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        low = dim // 4 * 4
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {dim}; try {low} or {low + 4}")
    float64 = {"dtype": torch.float64, "device": float64_device(device)}
    frequencies = _BASE ** -(torch.arange(dim // 4, **float64) / (dim // 4))
    rows, cols = (_axis(torch.arange(size, **float64), frequencies) for size in grid)
    rows = rows[:, None].expand(*grid, -1)
    cols = cols[None, :].expand(*grid, -1)
    halves = (cols, rows) if layout is SincosLayout.col_first else (rows, cols)
    table = torch.cat(halves, dim=-1).flatten(0, 1).float().to(device)
    return torch.cat([table.new_zeros(num_prefix, dim), table])[None]


def _axis(coordinates: Float[Tensor, "S"], frequencies: Float[Tensor, "Q"]) -> Float[Tensor, "S 2*Q"]:
    angles = coordinates[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def interpolate_positions(
    table: Float[Tensor, "1 L D"],
    source: tuple[int, int],
    grid: tuple[int, int],
    *,
    num_prefix: int = 0,
    offset: float = 0.0,
    antialias: bool = False,
) -> Float[Tensor, "1 M D"]:
    """Interpolate a learned table to another grid, bicubic; the rows of prefix tokens stay the same.

    Args:
        source: the rows and columns of ``table``.
        grid: the rows and columns of the result; where they equal ``source``, the table itself is returned.
        offset: added to the sides of ``grid`` to compute the scale, which shifts the sampling points.
        antialias: timm's kernel (a = -0.5 instead of -0.75), which also filters where the new grid is smaller.
    """
    if source == grid:
        return table
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    image = patches.unflatten(1, source).permute(0, 3, 1, 2)
    if offset:
        target = {"scale_factor": tuple((side + offset) / old for side, old in zip(grid, source, strict=True))}
    else:
        target = {"size": grid}
    resized = F.interpolate(image.float(), **target, mode="bicubic", antialias=antialias)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
