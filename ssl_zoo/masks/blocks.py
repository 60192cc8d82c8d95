"""Blocks on a grid of patches: the distribution of their sizes, and the patches that they cover."""

import bisect
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


class BlockSize(NamedTuple):
    """Height and width in patches."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class SizeDistribution:
    """A categorical distribution over all possible block sizes, with exact probabilities.

    Sizes are sampled from this table, so that a check of every size in the table holds for every batch.

    Attributes:
        sizes: size -> probability, smallest area first.
    """

    def __init__(self, sizes: dict[BlockSize, float]) -> None:
        self.sizes = dict(sorted(sizes.items(), key=lambda item: (item[0].area, item[0])))
        self._ordered = list(self.sizes)
        self._cumulative = list(itertools.accumulate(self.sizes.values()))

    @property
    def smallest(self) -> BlockSize:
        return self._ordered[0]

    @property
    def largest(self) -> BlockSize:
        return self._ordered[-1]

    def sample(self, generator: torch.Generator) -> BlockSize:
        quantile = torch.rand((), dtype=torch.float64, generator=generator).item() * self._cumulative[-1]
        return self._ordered[min(bisect.bisect_right(self._cumulative, quantile), len(self._ordered) - 1)]


def independent_sizes(grid: tuple[int, int], scale: list[float], aspect: list[float]) -> SizeDistribution:
    """Return the sizes for independent area and aspect; a block may span the full grid.

    A side that would exceed the grid is cut to it, and the other side grows to keep the area.

    Args:
        scale: area as a fraction of the grid, uniform in [low, high].
        aspect: height / width, uniform in [low, high].
    """
    sizes: dict[BlockSize, float] = {}
    for area, area_share, _ in _areas(grid, scale):
        for middle, aspect_share in _aspect_pieces(area, *aspect):
            size = _fitted(area, middle, grid)
            sizes[size] = sizes.get(size, 0.0) + area_share * aspect_share
    return SizeDistribution(sizes)


def reference_sizes(grid: tuple[int, int], scale: list[float], aspect: list[float]) -> SizeDistribution:
    """Return the distribution of ``reference_block_size``, where one number sets both area and aspect."""
    sizes: dict[BlockSize, float] = {}
    low, high = aspect
    for area, area_share, (start, end) in _areas(grid, scale):
        for middle, aspect_share in _aspect_pieces(area, low + start * (high - low), low + end * (high - low)):
            size = _capped(area, middle, grid)
            sizes[size] = sizes.get(size, 0.0) + area_share * aspect_share
    return SizeDistribution(sizes)


def reference_block_size(
    generator: torch.Generator, grid: tuple[int, int], scale: list[float], aspect: list[float]
) -> BlockSize:
    """Sample a block size as the I-JEPA code does.

    Differs from ``independent_sizes``: the same uniform number sets scale and aspect, so that small blocks are wide and
    large ones tall, and blocks must be smaller than the grid in both directions.
    """
    uniform = torch.rand(1, generator=generator).item()
    area = int(grid[0] * grid[1] * (scale[0] + uniform * (scale[1] - scale[0])))
    return _capped(area, aspect[0] + uniform * (aspect[1] - aspect[0]), grid)


def covered(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Bool[Tensor, "B N"]:
    """Return True at the patches of an image's M blocks."""
    rows, columns = grid[0] - size.height + 1, grid[1] - size.width + 1
    if rows * columns > top.numel():
        return _union(top, left, size, grid)
    # There are few positions: compute the mask of each once, then look masks up.
    all_top, all_left = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    table = _union(all_top[:, None], all_left[:, None], size, grid)
    position = top * columns + left
    union = table.index_select(0, position[:, 0])
    for block in range(1, position.shape[1]):
        union |= table.index_select(0, position[:, block])
    return union


def patches_in_blocks(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Int[Tensor, "B M T"]:
    """Return the sorted patch indices of every block."""
    rows, columns = grid[0] - size.height + 1, grid[1] - size.width + 1
    index = torch.arange(grid[0] * grid[1]).view(grid)
    # A lookup in the table of all positions is faster than adding an offset to each patch.
    table = index.unfold(0, size.height, 1).unfold(1, size.width, 1).reshape(rows * columns, size.area)
    return F.embedding(top * columns + left, table)


def _union(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Bool[Tensor, "B N"]:
    rows, columns = _intervals(top, size.height, grid[0]), _intervals(left, size.width, grid[1])
    union = rows[:, 0, :, None] & columns[:, 0, None, :]
    for block in range(1, top.shape[1]):
        union |= rows[:, block, :, None] & columns[:, block, None, :]
    return union.flatten(1)


def _intervals(start: Int[Tensor, "B M"], length: int, side: int) -> Bool[Tensor, "B M side"]:
    offset = torch.arange(side) - start[..., None]
    return (offset >= 0) & (offset < length)


def _areas(grid: tuple[int, int], scale: list[float]) -> Iterator[tuple[int, float, tuple[float, float]]]:
    """Yield areas floor(N * scale) with their probability and the interval of the uniform number that maps to them."""
    low, high = (grid[0] * grid[1] * bound for bound in scale)
    if high - low < 1e-9:
        yield int(low + 1e-9), 1.0, (0.0, 1.0)
        return
    for area in range(int(low + 1e-9), math.ceil(high - 1e-9)):
        start, end = (max(area, low) - low) / (high - low), (min(area + 1, high) - low) / (high - low)
        yield area, end - start, (start, end)


def _aspect_pieces(area: int, low: float, high: float) -> Iterator[tuple[float, float]]:
    """Cut low..high where a rounded side changes; yield the middle of each piece and its fraction of the range."""
    if area < 1 or high - low < 1e-12:
        yield (low + high) / 2, 1.0
        return
    tall = range(math.floor(math.sqrt(area * low)), math.ceil(math.sqrt(area * high)) + 1)
    wide = range(math.floor(math.sqrt(area / high)), math.ceil(math.sqrt(area / low)) + 1)
    cuts = [(side + 0.5) ** 2 / area for side in tall] + [area / (side + 0.5) ** 2 for side in wide]
    edges = [low, *sorted(cut for cut in cuts if low < cut < high), high]
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield (start + end) / 2, (end - start) / (high - low)


def _fitted(area: int, aspect: float, grid: tuple[int, int]) -> BlockSize:
    area = max(area, 1)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height > grid[0]:
        height, width = grid[0], round(area / grid[0])
    elif width > grid[1]:
        height, width = round(area / grid[1]), grid[1]
    return BlockSize(min(max(height, 1), grid[0]), min(max(width, 1), grid[1]))


def _capped(area: int, aspect: float, grid: tuple[int, int]) -> BlockSize:
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return BlockSize(min(height, grid[0] - 1), min(width, grid[1] - 1))
