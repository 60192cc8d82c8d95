"""Rectangles of patches on a grid: the sizes that scale and aspect can give, and the patches that blocks cover."""

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
    """Every block size that can be drawn, with its exact probability.

    A draw is a lookup in this table, so that a geometry which was checked for every size of the table can't meet
    another one later.

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

    def draw(self, generator: torch.Generator) -> BlockSize:
        quantile = torch.rand((), dtype=torch.float64, generator=generator).item() * self._cumulative[-1]
        return self._ordered[min(bisect.bisect_right(self._cumulative, quantile), len(self._ordered) - 1)]


def independent_sizes(grid: tuple[int, int], scale: list[float], aspect: list[float]) -> SizeDistribution:
    """Sizes when area and aspect are drawn independently and a block may span the whole grid.

    A side that would exceed the grid is cut to it and the other side grows to keep the area.

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
    """Sizes that ``reference_block_size`` can give: one number sets both area and aspect."""
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
    """The block size that the I-JEPA code draws.

    Differs from ``independent_sizes``: the same uniform number sets scale and aspect, so that small blocks are wide and
    large ones tall, and no side may reach the side of the grid.
    """
    uniform = torch.rand(1, generator=generator).item()
    area = int(grid[0] * grid[1] * (scale[0] + uniform * (scale[1] - scale[0])))
    return _capped(area, aspect[0] + uniform * (aspect[1] - aspect[0]), grid)


def covered(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Bool[Tensor, "B N"]:
    """True where any of an image's M blocks lies."""
    rows, columns = grid[0] - size.height + 1, grid[1] - size.width + 1
    if rows * columns > top.numel():
        return _union(top, left, size, grid)
    # A block has few places: paint each once, then copy whole grids.
    every_top, every_left = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    painted = _union(every_top[:, None], every_left[:, None], size, grid)
    place = top * columns + left
    union = painted.index_select(0, place[:, 0])
    for block in range(1, place.shape[1]):
        union |= painted.index_select(0, place[:, block])
    return union


def block_patches(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Int[Tensor, "B M T"]:
    """Sorted patch indices of every block."""
    rows, columns = grid[0] - size.height + 1, grid[1] - size.width + 1
    index = torch.arange(grid[0] * grid[1]).view(grid)
    # Copying a block's row out of the table of all places is quicker than adding an offset to each patch.
    table = index.unfold(0, size.height, 1).unfold(1, size.width, 1).reshape(rows * columns, size.area)
    return F.embedding(top * columns + left, table)


def _union(
    top: Int[Tensor, "B M"], left: Int[Tensor, "B M"], size: BlockSize, grid: tuple[int, int]
) -> Bool[Tensor, "B N"]:
    rows, columns = _spans(top, size.height, grid[0]), _spans(left, size.width, grid[1])
    union = rows[:, 0, :, None] & columns[:, 0, None, :]
    for block in range(1, top.shape[1]):
        union |= rows[:, block, :, None] & columns[:, block, None, :]
    return union.flatten(1)


def _spans(start: Int[Tensor, "B M"], length: int, side: int) -> Bool[Tensor, "B M side"]:
    offset = torch.arange(side) - start[..., None]
    return (offset >= 0) & (offset < length)


def _areas(grid: tuple[int, int], scale: list[float]) -> Iterator[tuple[int, float, tuple[float, float]]]:
    """Areas floor(N * scale) with their probability and the interval of the uniform number that gives them."""
    low, high = (grid[0] * grid[1] * bound for bound in scale)
    if high - low < 1e-9:
        yield int(low + 1e-9), 1.0, (0.0, 1.0)
        return
    for area in range(int(low + 1e-9), math.ceil(high - 1e-9)):
        start, end = (max(area, low) - low) / (high - low), (min(area + 1, high) - low) / (high - low)
        yield area, end - start, (start, end)


def _aspect_pieces(area: int, low: float, high: float) -> Iterator[tuple[float, float]]:
    """The aspects low..high cut where a rounded side changes: the middle of each piece and its share of the range."""
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
