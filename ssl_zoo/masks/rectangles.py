"""Placement of random rectangles, one after the other, until enough patches are masked (BEiT)."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

_ATTEMPTS = 10  # rectangles tried for one block
_MAX_ROUNDS = 200  # of _ATTEMPTS each; an image that needs more is completed by single patches
MIN_FITTING = 0.05  # fraction of first rectangles that must fit the grid; if fewer fit, masks are atypical
_CHECKED = 4096  # first rectangles sampled to estimate how many fit


class Persistence(Enum):
    """Which images are retried after ten rectangles without an acceptable one."""

    never = "never"
    until_one = "until_one"  # those without any block
    always = "always"


@dataclass(frozen=True)
class _Rectangles:
    """The rectangles tried for the next block of every image, in order."""

    top: Int[Tensor, "B A"]
    left: Int[Tensor, "B A"]
    height: Int[Tensor, "B A"]
    width: Int[Tensor, "B A"]
    fits: Bool[Tensor, "B A"]


@dataclass(frozen=True)
class RectanglePlacer:
    """Places overlapping rectangles on a grid.

    A rectangle is masked if it adds at least one patch and no more than remain to be masked; ten are tried for each
    block. Since rectangles are not cut, they cover the centre more often than the border, as in the reference codes.

    Attributes:
        min_area, max_area: limits of a sampled rectangle's area.
        aspect: height / width, [low, high], sampled log-uniformly.
        smaller: a rectangle must be smaller than the grid in both directions.
    """

    grid: tuple[int, int]
    min_area: int
    max_area: int
    aspect: tuple[float, float]
    smaller: bool

    def place(
        self, goals: Real[Tensor, "B"], persistence: Persistence, generator: torch.Generator
    ) -> Bool[Tensor, "B N"]:
        """Return True at the patches of rectangles, at most ``goals`` per image."""
        # 1.0 where no rectangle lies: torch's float kernels are several times faster here than those of bool.
        free = torch.ones(len(goals), *self.grid)
        remaining = goals.clone()
        growing = (goals > 0).nonzero()[:, 0]
        for _ in range(_MAX_ROUNDS):
            if not len(growing):
                break
            retried = self._add_block(free, remaining, growing, generator)
            if persistence is Persistence.until_one:
                retried = retried | (remaining[growing] == goals[growing])
            elif persistence is Persistence.always:
                retried = torch.ones_like(retried)
            growing = growing[retried & (remaining[growing] > 0)]
        return free.flatten(1) == 0

    def fitting_fraction(self, goal: float, generator: torch.Generator) -> float:
        """Estimate the fraction of rectangles that would be accepted on an empty grid."""
        room = torch.full((_CHECKED // _ATTEMPTS,), min(goal, self.max_area))
        sampled = self._sample(room, generator)
        return (sampled.fits & (sampled.height * sampled.width <= room[:, None])).float().mean().item()

    def _add_block(
        self,
        free: Float[Tensor, "B H W"],
        remaining: Real[Tensor, "B"],
        growing: Int[Tensor, "G"],
        generator: torch.Generator,
    ) -> Bool[Tensor, "G"]:
        """Mask the first acceptable of ten rectangles in every image of ``growing``; True where there was one."""
        before, room = free[growing], remaining[growing].clamp(max=self.max_area)
        tried = self._sample(room, generator)
        new = _count(before, tried)
        accepted = tried.fits & (new > 0) & (new <= room[:, None])
        added, first = accepted.any(1), accepted.int().argmax(1, keepdim=True)
        top, left, height, width = (
            side.gather(1, first)[:, 0] for side in (tried.top, tried.left, tried.height, tried.width)
        )
        rows, columns = _span(top, height, self.grid[0]), _span(left, width, self.grid[1])
        rows = rows * added[:, None]
        free[growing] = before * (1 - rows[:, :, None] * columns[:, None, :])
        remaining[growing] -= new.gather(1, first)[:, 0] * added
        return added

    def _sample(self, room: Real[Tensor, "B"], generator: torch.Generator) -> _Rectangles:
        """Sample ten rectangles per image: area, aspect, and a corner uniform over all positions on the grid."""
        low, high = self.aspect
        area, aspect, vertical, horizontal = torch.rand(4, len(room), _ATTEMPTS, generator=generator)
        # With less room than the least area the interval is reversed, and smaller blocks complete the image.
        area = self.min_area + area * (room[:, None] - self.min_area)
        aspect = torch.exp(math.log(low) + aspect * (math.log(high) - math.log(low)))
        height, width = _rounded_root(area * aspect), _rounded_root(area / aspect)
        smaller = int(self.smaller)
        fits = (height <= self.grid[0] - smaller) & (width <= self.grid[1] - smaller) & (height > 0) & (width > 0)
        height, width = height.clamp(max=self.grid[0]), width.clamp(max=self.grid[1])
        top, left = vertical * (self.grid[0] - height + 1), horizontal * (self.grid[1] - width + 1)
        return _Rectangles(top.long(), left.long(), height, width, fits)


def _count(patches: Float[Tensor, "B H W"], rectangles: _Rectangles) -> Int[Tensor, "B A"]:
    """Count the ``patches`` (1.0) that each rectangle covers, by a summed-area table."""
    table = F.pad(patches.cumsum(1).cumsum(2), (1, 0, 1, 0))
    columns = table.shape[2]
    table = table.flatten(1)
    upper, left = rectangles.top * columns, rectangles.left
    lower, right = (rectangles.top + rectangles.height) * columns, rectangles.left + rectangles.width
    corner = [table.gather(1, place) for place in (lower + right, upper + right, lower + left, upper + left)]
    return (corner[0] - corner[1] - corner[2] + corner[3]).long()


def _span(start: Int[Tensor, "B"], length: Int[Tensor, "B"], side: int) -> Float[Tensor, "B side"]:
    offset = torch.arange(side) - start[:, None]
    return ((offset >= 0) & (offset < length[:, None])).float()


def _rounded_root(area: Float[Tensor, "B A"]) -> Int[Tensor, "B A"]:
    return area.sqrt().round().long()
