"""BEiT's block masks (arXiv 2106.08254, algorithm 1): rectangles are hidden one after the other."""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.masks.subsets import check_both_sides, check_fraction, masks_of, part_of, random_subset
from ssl_zoo.registry import setting
from ssl_zoo.seeding import generator_for

_ATTEMPTS = 10  # rectangles that are tried for one block before an image has no room for another
_MAX_ROUNDS = 200  # of so many attempts; an image that needs more is completed by single patches
_MIN_FITTING = 0.05  # share of first rectangles that must fit the grid; fewer survivors are atypical
_CHECKED = 4096  # first rectangles drawn at construction


class Shortfall(Enum):
    """What follows when no further block fits and patches are still to be hidden."""

    fill = "fill"  # single patches at random complete the number
    retry = "retry"  # blocks are tried until the number is exact (CAE)
    keep = "keep"  # nothing: images hide different numbers of patches (BEiT, data2vec)


@dataclass
class BlockwiseConfig(MasksConfig):
    """Defaults: data2vec's 120 of 196 patches; BEiT hides 75, CAE 98 with shortfall=retry."""

    hidden_fraction: float = setting(0.6125, "hidden patches as a fraction of the grid, rounded down")
    min_block_patches: int = setting(16, "least area of a drawn block")
    max_block_patches: int | None = setting(None, "largest area of a drawn block; null sets no limit")
    block_aspect: list[float] = setting([0.3, 1 / 0.3], "height / width of a block, [low, high], drawn log-uniformly")
    shortfall: Shortfall = setting(Shortfall.fill, "when no block fits any more: fill, retry, keep (ragged masks)")
    compat: bool = setting(False, "a block must be smaller than the grid in both directions, as in the reference codes")

    def __post_init__(self) -> None:
        check_fraction("masks.hidden_fraction", self.hidden_fraction)
        if self.min_block_patches < 1:
            raise ValueError(f"masks.min_block_patches={self.min_block_patches} must be at least 1")
        if self.max_block_patches is not None and self.max_block_patches < self.min_block_patches:
            raise ValueError(
                f"masks.max_block_patches={self.max_block_patches} is below "
                f"masks.min_block_patches={self.min_block_patches}"
            )
        if len(self.block_aspect) != 2 or not 0 < self.block_aspect[0] <= self.block_aspect[1]:
            raise ValueError(f"masks.block_aspect={self.block_aspect} must be [low, high] with 0 < low <= high")


@dataclass(frozen=True)
class _Rectangles:
    """Attempts at one more block of every image, in the order in which they are made."""

    top: Int[Tensor, "B A"]
    left: Int[Tensor, "B A"]
    height: Int[Tensor, "B A"]
    width: Int[Tensor, "B A"]
    fits: Bool[Tensor, "B A"]


@MASKS.register("blockwise", BlockwiseConfig)
class BlockwiseGenerator(MaskGenerator):
    """BEiT's masks: overlapping rectangles are hidden until the number is met; the context is the rest.

    A rectangle is hidden if it adds at least one patch and no more than are still to be hidden; ten are tried for each
    block. Whole rectangles reach the centre more often than the border, here as in the reference.

    Differs from the reference: the number is exact, and a block may span the grid. ``shortfall=keep`` with ``compat``
    is BEiT's sampler and ``shortfall=retry`` with ``compat`` CAE's.
    """

    config: BlockwiseConfig

    def __init__(self, config: BlockwiseConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self._num_hidden = part_of(self.num_patches, config.hidden_fraction)
        patches = f"patches of the {grid[0]}x{grid[1]} grid"
        check_both_sides("masks.hidden_fraction", config.hidden_fraction, self._num_hidden, self.num_patches, patches)
        self._most = self.num_patches if config.max_block_patches is None else config.max_block_patches
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        hidden = self.place_blocks(batch_size, generator)
        if self.config.shortfall is not Shortfall.keep:
            chosen = random_subset(hidden, self._num_hidden, generator)
            hidden = torch.zeros_like(hidden).scatter_(1, chosen, True)
        return masks_of(hidden, generator)

    def place_blocks(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """True where a block lies; images may have fewer than they should hide."""
        # 1.0 where nothing lies: torch's float kernels are several times faster here than those of bool.
        free = torch.ones(batch_size, *self.grid)
        remaining = torch.full((batch_size,), self._num_hidden)
        growing = torch.arange(batch_size)
        for _ in range(_MAX_ROUNDS):
            if not len(growing):
                break
            added = self._add_block(free, remaining, growing, generator)
            # An image without any block goes on: it must have something to predict.
            goes_on = added | (remaining[growing] == self._num_hidden)
            if self.config.shortfall is Shortfall.retry:
                goes_on = torch.ones_like(added)
            growing = growing[goes_on & (remaining[growing] > 0)]
        return free.flatten(1) == 0

    def _add_block(
        self,
        free: Float[Tensor, "B H W"],
        remaining: Int[Tensor, "B"],
        growing: Int[Tensor, "G"],
        generator: torch.Generator,
    ) -> Bool[Tensor, "G"]:
        """Hide the first acceptable of ten rectangles in every image of ``growing``; True where there was one."""
        before, room = free[growing], remaining[growing].clamp(max=self._most)
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

    def _draw(self, room: Int[Tensor, "B"], generator: torch.Generator) -> _Rectangles:
        """Ten rectangles per image, sizes by area and aspect, corners uniform over all places on the grid."""
        least, (low, high) = self.config.min_block_patches, self.config.block_aspect
        area, aspect, vertical, horizontal = torch.rand(4, len(room), _ATTEMPTS, generator=generator)
        # With less room than the least area the interval is reversed, and smaller blocks finish the image.
        area = least + area * (room[:, None] - least)
        aspect = torch.exp(math.log(low) + aspect * (math.log(high) - math.log(low)))
        height, width = _rounded_root(area * aspect), _rounded_root(area / aspect)
        smaller = int(self.config.compat)
        fits = (height <= self.grid[0] - smaller) & (width <= self.grid[1] - smaller) & (height > 0) & (width > 0)
        height, width = height.clamp(max=self.grid[0]), width.clamp(max=self.grid[1])
        top, left = vertical * (self.grid[0] - height + 1), horizontal * (self.grid[1] - width + 1)
        return _Rectangles(top.long(), left.long(), height, width, fits)

    def _check_geometry(self) -> None:
        """Refuse blocks of which too few fit: the masks would hardly have blocks."""
        config, grid = self.config, f"the {self.grid[0]}x{self.grid[1]} grid"
        if config.min_block_patches > self._num_hidden:
            raise ValueError(
                f"masks.min_block_patches={config.min_block_patches} exceeds the {self._num_hidden} patches that "
                f"masks.hidden_fraction={config.hidden_fraction} hides on {grid}; use {self._num_hidden} or less"
            )
        room = torch.full((_CHECKED // _ATTEMPTS,), min(self._num_hidden, self._most))
        drawn = self._draw(room, generator_for("blockwise feasibility"))
        acceptable = drawn.fits & (drawn.height * drawn.width <= room[:, None])
        share = acceptable.float().mean().item()
        if share < _MIN_FITTING:
            raise ValueError(
                f"{share:.1%} of the blocks fit {grid} with masks.min_block_patches={config.min_block_patches}, "
                f"masks.max_block_patches={config.max_block_patches} and masks.block_aspect="
                f"[{config.block_aspect[0]:.3g}, {config.block_aspect[1]:.3g}]; use smaller blocks, another aspect or "
                "a finer patch (backbone.patch_size)"
            )


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
