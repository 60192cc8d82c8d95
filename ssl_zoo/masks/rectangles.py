"""Rectangles of random sizes that are placed one after the other until enough patches are masked (BEiT)."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

_ATTEMPTS = 10  # rectangles that are tried for one block before an image has no room for another
_MAX_ROUNDS = 200  # of so many attempts; an image that needs more is completed by single patches
MIN_FITTING = 0.05  # share of first rectangles that must fit the grid; fewer survivors are atypical
_CHECKED = 4096  # first rectangles drawn to tell how many fit


def check_aspect(key: str, aspect: list[float]) -> None:
    """Refuse what is no range of height / width."""
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"{key}={aspect} must be [low, high] with 0 < low <= high")


class Persistence(Enum):
    """When an image gets further attempts although none of ten rectangles was acceptable."""

    never = "never"
    until_one = "until_one"  # as long as it has no block at all
    always = "always"


@dataclass(frozen=True)
class _Rectangles:
    """Attempts at one more block of every image, in the order in which they are made."""

    top: Int[Tensor, "B A"]
    left: Int[Tensor, "B A"]
    height: Int[Tensor, "B A"]
    width: Int[Tensor, "B A"]
    fits: Bool[Tensor, "B A"]


@dataclass(frozen=True)
class RectanglePlacer:
    """Places overlapping rectangles on a grid.

    A rectangle is masked if it adds at least one patch and no more than are still to be masked; ten are tried for each
    block. Whole rectangles reach the centre more often than the border, as in the reference codes.

    Attributes:
        least: least area of a drawn rectangle.
        most: largest area of one.
        aspect: height / width, [low, high], drawn log-uniformly.
        smaller: a rectangle must be smaller than the grid in both directions.
    """

    grid: tuple[int, int]
    least: int
    most: int
    aspect: tuple[float, float]
    smaller: bool

    def place(
        self, goals: Real[Tensor, "B"], persistence: Persistence, generator: torch.Generator
    ) -> Bool[Tensor, "B N"]:
        """True where a rectangle lies; images may have fewer than their goal, and none has more."""
        # 1.0 where nothing lies: torch's float kernels are several times faster here than those of bool.
        free = torch.ones(len(goals), *self.grid)
        remaining = goals.clone()
        growing = (goals > 0).nonzero()[:, 0]
        for _ in range(_MAX_ROUNDS):
            if not len(growing):
                break
            goes_on = self._add_block(free, remaining, growing, generator)
            if persistence is Persistence.until_one:
                goes_on = goes_on | (remaining[growing] == goals[growing])
            elif persistence is Persistence.always:
                goes_on = torch.ones_like(goes_on)
            growing = growing[goes_on & (remaining[growing] > 0)]
        return free.flatten(1) == 0

    def share_that_fits(self, goal: float, generator: torch.Generator) -> float:
        """Of first rectangles, those that would be accepted on an empty grid."""
        room = torch.full((_CHECKED // _ATTEMPTS,), min(goal, self.most))
        drawn = self._draw(room, generator)
        return (drawn.fits & (drawn.height * drawn.width <= room[:, None])).float().mean().item()

    def _add_block(
        self,
        free: Float[Tensor, "B H W"],
        remaining: Real[Tensor, "B"],
        growing: Int[Tensor, "G"],
        generator: torch.Generator,
    ) -> Bool[Tensor, "G"]:
        """Hide the first acceptable of ten rectangles in every image of ``growing``; True where there was one."""
        before, room = free[growing], remaining[growing].clamp(max=self.most)
        tried = self._draw(room, generator)
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

    def _draw(self, room: Real[Tensor, "B"], generator: torch.Generator) -> _Rectangles:
        """Ten rectangles per image, sizes by area and aspect, corners uniform over all places on the grid."""
        least, (low, high) = self.least, self.aspect
        area, aspect, vertical, horizontal = torch.rand(4, len(room), _ATTEMPTS, generator=generator)
        # With less room than the least area the interval is reversed, and smaller blocks finish the image.
        area = least + area * (room[:, None] - least)
        aspect = torch.exp(math.log(low) + aspect * (math.log(high) - math.log(low)))
        height, width = _rounded_root(area * aspect), _rounded_root(area / aspect)
        smaller = int(self.smaller)
        fits = (height <= self.grid[0] - smaller) & (width <= self.grid[1] - smaller) & (height > 0) & (width > 0)
        height, width = height.clamp(max=self.grid[0]), width.clamp(max=self.grid[1])
        top, left = vertical * (self.grid[0] - height + 1), horizontal * (self.grid[1] - width + 1)
        return _Rectangles(top.long(), left.long(), height, width, fits)


def _count(patches: Float[Tensor, "B H W"], rectangles: _Rectangles) -> Int[Tensor, "B A"]:
    """How many of ``patches`` (1.0) every rectangle covers, from their summed-area table."""
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
