"""I-JEPA's multi-block masks (arXiv 2301.08243, sec. 3): several small targets, one large context without them."""

import logging
import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ssl_zoo.masks.base import MASKS, MaskGenerator, Masks, MasksConfig, Pairing
from ssl_zoo.masks.blocks import (
    BlockSize,
    block_patches,
    covered,
    independent_sizes,
    reference_block_size,
    reference_sizes,
)
from ssl_zoo.masks.subsets import first_subset, random_subset
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

_LOG = logging.getLogger(__name__)

_MIN_ACCEPTANCE = 0.05  # share of placements that must leave a large enough context; fewer survivors are atypical
_MAX_REDRAWS = 1000  # at the least acceptance, 1 of 1e22 images needs more
_CHECKED_PAIRS, _CHECKED_IMAGES = 16, 256  # of a target and a context size, tightest first, and placements of each
_TRIES_PER_CONSTRAINT = 20  # compat: the reference drops one more target from the constraint after so many failures


class ContextTokens(Enum):
    """How the contexts of a batch get equally many patches."""

    fixed = "fixed"  # context_fraction of the grid, a random subset of the candidates; independent of the batch size
    batch_min = "batch_min"  # as many as the batch's smallest context has, a random subset of the candidates
    compat = "compat"  # the reference code in everything: see MultiblockGenerator


@dataclass
class MultiblockConfig(MasksConfig):
    """Defaults: arXiv 2301.08243, appendix A.1; min_patches from the reference configs."""

    target_scale: list[float] = setting([0.15, 0.2], "area of a target block as a fraction of the grid, [low, high]")
    target_aspect: list[float] = setting([0.75, 1.5], "height / width of a target block, [low, high]")
    num_targets: int = setting(4, "target blocks per image; they may overlap each other")
    context_scale: list[float] = setting([0.85, 1.0], "area of a context block, target patches included, [low, high]")
    num_contexts: int = setting(1, "context blocks per image; each predicts every target")
    min_patches: int = setting(10, "every target and context must have more patches than this")
    allow_overlap: bool = setting(False, "contexts may contain target patches")
    context_tokens: ContextTokens = setting(
        ContextTokens.fixed, "how contexts get one length: fixed, batch_min, compat"
    )
    context_fraction: float = setting(0.25, "patches of a context as a fraction of the grid, for context_tokens=fixed")

    def __post_init__(self) -> None:
        _check_range("masks.target_scale", self.target_scale, most=1.0)
        _check_range("masks.context_scale", self.context_scale, most=1.0)
        _check_range("masks.target_aspect", self.target_aspect, most=float("inf"))
        for name, least in (("num_targets", 1), ("num_contexts", 1), ("min_patches", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"masks.{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.context_fraction <= 1:
            raise ValueError(f"masks.context_fraction={self.context_fraction} must lie in (0, 1]")


def _check_range(key: str, bounds: list[float], most: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise ValueError(f"{key}={bounds} must be [low, high] with 0 < low <= high{limit}")


@dataclass(frozen=True)
class MaskStatistics:
    """What a generator produces, over many images of a fixed seed; counts are patches per block."""

    context_mean: float
    context_min: int
    context_max: int
    target_mean: float
    target_min: int
    target_max: int
    context_fraction: float  # mean context over the whole grid
    redrawn: int  # placements thrown away because a context was too small
    relaxed: int  # contexts that got target patches because no placement was found (compat only)
    num_images: int


@dataclass(frozen=True)
class _Placement:
    """Blocks of a batch: their patches, and for every context the patches that it may use."""

    targets: Int[Tensor, "B M T"]
    candidates: Bool[Tensor, "B C N"]
    redrawn: int = 0
    relaxed: int = 0


@MASKS.register("multiblock", MultiblockConfig)
class MultiblockGenerator(MaskGenerator):
    """I-JEPA's masks: target blocks anywhere, and a context block without the targets' patches.

    Block sizes are drawn once per call, positions for every image and block.

    Differs from the reference: the last row and column are reachable, scale and aspect are independent, contexts are
    shortened by random choice instead of from the image's bottom, their length can be fixed, and an impossible geometry
    is an error instead of an endless loop. ``context_tokens=compat`` has all of the reference's ways but the last.
    """

    config: MultiblockConfig

    def __init__(self, config: MultiblockConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.compat = config.context_tokens is ContextTokens.compat
        self.num_relaxed = 0  # contexts of all calls that got target patches; observed, never used in a draw
        # A square context on a wide grid could not reach the area that context_scale asks for.
        context_aspect = [1.0, 1.0] if self.compat else [grid[0] / grid[1]] * 2
        sizes = reference_sizes if self.compat else independent_sizes
        self._target_sizes = sizes(grid, config.target_scale, config.target_aspect)
        self._context_sizes = sizes(grid, config.context_scale, context_aspect)
        if config.context_tokens is ContextTokens.fixed:
            self._needed = int(config.context_fraction * self.num_patches + 1e-9)
        else:
            self._needed = config.min_patches + 1
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masks, placement = self._draw(batch_size, generator)
        if placement.relaxed:
            if not self.num_relaxed:
                _LOG.warning("a context of masks with context_tokens=compat had no room and contains target patches")
            self.num_relaxed += placement.relaxed
        return masks

    def statistics(self, num_images: int = 4096, batch_size: int = 128) -> MaskStatistics:
        """Counts over ``num_images`` images in batches of ``batch_size``; the same in every run and process."""
        generator = generator_for("multiblock statistics")
        draws = [self._draw(batch_size, generator) for _ in range(-(-num_images // batch_size))]
        context = [masks.context.shape[2] for masks, _ in draws]
        target = [masks.targets.shape[2] for masks, _ in draws]
        return MaskStatistics(
            context_mean=sum(context) / len(context),
            context_min=min(context),
            context_max=max(context),
            target_mean=sum(target) / len(target),
            target_min=min(target),
            target_max=max(target),
            context_fraction=sum(context) / len(context) / self.num_patches,
            redrawn=sum(placement.redrawn for _, placement in draws),
            relaxed=sum(placement.relaxed for _, placement in draws),
            num_images=len(draws) * batch_size,
        )

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Masks, _Placement]:
        target_size, context_size = self._draw_sizes(generator)
        place = self._place_as_reference if self.compat else self._place
        placement = place(batch_size, target_size, context_size, generator)
        candidates = placement.candidates.flatten(0, 1)
        if self.config.context_tokens is ContextTokens.fixed:
            context = random_subset(candidates, self._needed, generator)
        else:
            count = int(candidates.sum(1).min())
            context = first_subset(candidates, count) if self.compat else random_subset(candidates, count, generator)
        context = context.unflatten(0, (batch_size, self.config.num_contexts))
        return Masks(context, placement.targets, Pairing.product), placement

    def _draw_sizes(self, generator: torch.Generator) -> tuple[BlockSize, BlockSize]:
        if not self.compat:
            return self._target_sizes.draw(generator), self._context_sizes.draw(generator)
        config = self.config
        target = reference_block_size(generator, self.grid, config.target_scale, config.target_aspect)
        return target, reference_block_size(generator, self.grid, config.context_scale, [1.0, 1.0])

    def _place(
        self, batch_size: int, target_size: BlockSize, context_size: BlockSize, generator: torch.Generator
    ) -> _Placement:
        """Blocks uniform over all positions, given that every context of an image keeps enough candidates."""
        placement = self._place_once(batch_size, target_size, context_size, generator)
        offenders = self._too_small(placement).nonzero().flatten()
        redrawn = 0
        for _ in range(_MAX_REDRAWS):
            if not len(offenders):
                return _Placement(placement.targets, placement.candidates, redrawn)
            redrawn += len(offenders)
            again = self._place_once(len(offenders), target_size, context_size, generator)
            placement.targets[offenders], placement.candidates[offenders] = again.targets, again.candidates
            offenders = offenders[self._too_small(again)]
        raise ValueError(
            f"{len(offenders)} images have no room for contexts of {self._needed} patches in {_MAX_REDRAWS} placements "
            f"of {target_size} targets and {context_size} contexts; lower masks.context_fraction or masks.num_targets"
        )

    def _place_once(
        self, batch_size: int, target_size: BlockSize, context_size: BlockSize, generator: torch.Generator
    ) -> _Placement:
        top, left = self._corners((batch_size, self.config.num_targets), target_size, generator)
        contexts = (batch_size * self.config.num_contexts, 1)
        candidates = covered(*self._corners(contexts, context_size, generator), context_size, self.grid)
        candidates = candidates.view(batch_size, self.config.num_contexts, self.num_patches)
        if not self.config.allow_overlap:
            candidates &= ~covered(top, left, target_size, self.grid)[:, None]
        return _Placement(block_patches(top, left, target_size, self.grid), candidates)

    def _place_as_reference(
        self, batch_size: int, target_size: BlockSize, context_size: BlockSize, generator: torch.Generator
    ) -> _Placement:
        """A context with too few patches is redrawn alone; after every 20 failures one more target, from the last
        on, may be overlapped, so that the block as a whole is accepted in the end."""
        num_targets, num_contexts = self.config.num_targets, self.config.num_contexts
        top, left = self._corners((batch_size, num_targets), target_size, generator)
        candidates = torch.empty(batch_size * num_contexts, self.num_patches, dtype=torch.bool)
        pending = torch.arange(batch_size * num_contexts)
        redrawn = relaxed = 0
        attempt = 0
        while len(pending):
            corners = self._corners((len(pending), 1), context_size, generator)
            drawn = covered(*corners, context_size, self.grid)
            kept = 0 if self.config.allow_overlap else num_targets - attempt // _TRIES_PER_CONSTRAINT
            if kept > 0:
                image = pending // num_contexts
                drawn &= ~covered(top[image, :kept], left[image, :kept], target_size, self.grid)
            candidates[pending] = drawn
            pending = pending[drawn.sum(1) <= self.config.min_patches]
            redrawn += len(pending)
            attempt += 1
            relaxed += len(pending) if attempt == _TRIES_PER_CONSTRAINT else 0
        candidates = candidates.view(batch_size, num_contexts, self.num_patches)
        return _Placement(block_patches(top, left, target_size, self.grid), candidates, redrawn, relaxed)

    def _corners(
        self, shape: tuple[int, int], size: BlockSize, generator: torch.Generator
    ) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B M"]]:
        """Top and left of blocks, uniform over all places on the grid."""
        # The reference excludes the last place of both directions: the last row and column are never seen.
        places = 0 if self.compat else 1
        top = torch.randint(self.grid[0] - size.height + places, shape, generator=generator)
        return top, torch.randint(self.grid[1] - size.width + places, shape, generator=generator)

    def _too_small(self, placement: _Placement) -> Bool[Tensor, "B"]:
        counts = torch.from_numpy(np.count_nonzero(placement.candidates.numpy(), axis=2))
        return (counts < self._needed).any(1)

    def _check_geometry(self) -> None:
        """Refuse what would never end or could only be met by atypical placements."""
        config, grid = self.config, f"the {self.grid[0]}x{self.grid[1]} grid"
        finer = f"a finer patch (half of backbone.patch_size gives {2 * self.grid[0]}x{2 * self.grid[1]})"
        demand = f"masks.min_patches={config.min_patches} demands more than {config.min_patches}"
        for key, sizes in (("target_scale", self._target_sizes), ("context_scale", self._context_sizes)):
            least, most = sizes.smallest.area, sizes.largest.area
            if least <= config.min_patches:
                lower = f" or masks.min_patches={least - 1}" if least else ""
                raise ValueError(
                    f"masks.{key}={list(getattr(config, key))} on {grid} gives blocks of {least}..{most} patches, but "
                    f"{demand}. Use {finer}, a larger masks.{key}{lower}."
                )
        if self._needed <= config.min_patches:
            raise ValueError(
                f"masks.context_fraction={config.context_fraction} on {grid} gives contexts of {self._needed} patches, "
                f"but {demand}. Use {finer}, a larger masks.context_fraction or a lower masks.min_patches."
            )
        if not self.compat:  # there the constraint is relaxed until a block fits
            self._check_room()

    def _check_room(self) -> None:
        """Estimate, for the tightest sizes, how many placements leave a large enough context."""
        generator = generator_for("multiblock feasibility")
        removed = 0 if self.config.allow_overlap else self.config.num_targets
        pairs = [(target, context) for target in self._target_sizes.sizes for context in self._context_sizes.sizes]
        pairs.sort(key=lambda pair: pair[1].area - removed * pair[0].area)
        for target_size, context_size in pairs[:_CHECKED_PAIRS]:
            if context_size.area - removed * target_size.area >= self._needed:
                return  # always met, and all following pairs have more room
            placement = self._place_once(_CHECKED_IMAGES, target_size, context_size, generator)
            room = placement.candidates.sum(2).amin(1)
            acceptance = (room >= self._needed).float().mean().item()
            if acceptance < _MIN_ACCEPTANCE:
                raise ValueError(self._no_room(target_size, context_size, acceptance, int(room.median())))

    def _no_room(self, target_size: BlockSize, context_size: BlockSize, acceptance: float, typical: int) -> str:
        config = self.config
        if config.context_tokens is ContextTokens.fixed:
            asked = f"masks.context_fraction={config.context_fraction} asks for contexts of {self._needed} patches"
            fraction = math.floor(100 * typical / self.num_patches) / 100
            remedy = f"masks.context_fraction={fraction:g}, " if fraction > 0 else ""
        else:
            asked = f"masks.min_patches={config.min_patches} asks for contexts of {self._needed} patches or more"
            remedy = f"masks.min_patches={typical - 1}, " if typical > 0 else ""
        return (
            f"{asked} on the {self.grid[0]}x{self.grid[1]} grid. With targets of {target_size} patches "
            f"(masks.num_targets={config.num_targets}, masks.target_scale={list(config.target_scale)}) "
            f"and contexts of {context_size} "
            f"(masks.context_scale={list(config.context_scale)}, masks.num_contexts={config.num_contexts}), "
            f"{acceptance:.1%} of random placements leave that many; half of them leave {typical}. "
            f"Use {remedy}a smaller masks.target_scale, fewer masks.num_targets or masks.allow_overlap=true."
        )
