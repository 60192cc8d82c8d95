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
    covered,
    independent_sizes,
    patches_in_blocks,
    reference_block_size,
    reference_sizes,
)
from ssl_zoo.masks.subsets import first_subset, random_subset
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

_LOG = logging.getLogger(__name__)

_MIN_ACCEPTANCE = 0.05  # fraction of placements that must leave a large enough context; if fewer do, masks are atypical
_MAX_REJECTIONS = 1000  # at the least acceptance, 1 of 1e22 images needs more
_CHECKED_PAIRS, _CHECKED_IMAGES = 16, 256  # pairs of a target and a context size, tightest first; placements of each
_TRIES_PER_CONSTRAINT = 20  # compat: failures after which the reference drops one more target from the constraint


class ContextLength(Enum):
    """How the contexts of a batch are cut to a common number of patches."""

    fixed = "fixed"  # context_fraction of the grid, a random subset of the candidates; independent of the batch size
    batch_min = "batch_min"  # the batch's smallest context, a random subset of the candidates
    compat = "compat"  # the reference code in every respect: see MultiblockGenerator


@dataclass
class MultiblockConfig(MasksConfig):
    """The defaults are those of arXiv 2301.08243, appendix A.1, and min_patches that of the reference configs."""

    target_scale: list[float] = setting(
        [0.15, 0.2], "target block area over grid area, [low, high]", above=0, at_most=1, length=2
    )
    target_aspect: list[float] = setting(
        [0.75, 1.5], "height / width of a target block, [low, high]", above=0, length=2
    )
    num_targets: int = setting(4, "target blocks per image; they may overlap each other", at_least=1)
    context_scale: list[float] = setting(
        [0.85, 1.0], "context block area over grid area, targets included, [low, high]", above=0, at_most=1, length=2
    )
    num_contexts: int = setting(1, "context blocks per image; each predicts every target", at_least=1)
    min_patches: int = setting(10, "every target and context must have more patches than this", at_least=0)
    allow_overlap: bool = setting(False, "contexts may contain target patches")
    context_length: ContextLength = setting(ContextLength.fixed, "how contexts are cut: fixed, batch_min, compat")
    context_fraction: float = setting(
        0.25, "context patches over grid patches, for context_length=fixed", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ranges("target_scale", "target_aspect", "context_scale")


@dataclass(frozen=True)
class _Placement:
    """Blocks of a batch: the patches of targets, and for every context the patches that it may contain."""

    targets: Int[Tensor, "B M T"]
    candidates: Bool[Tensor, "B C N"]
    relaxed: int = 0  # contexts that contain target patches because no placement was found (compat only)


@MASKS.register("multiblock", MultiblockConfig)
class MultiblockGenerator(MaskGenerator):
    """I-JEPA's masks: target blocks anywhere, and a context block without the targets' patches.

    Block sizes are sampled once per batch, positions for every image and block.

    Differs from the reference: the last row and column are reachable, scale and aspect are independent, contexts are
    shortened at random instead of from the image's bottom, their length can be fixed, and an impossible geometry is an
    error instead of an endless loop. ``context_length=compat`` follows the reference in all but the last.
    """

    config: MultiblockConfig

    def __init__(self, config: MultiblockConfig, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.compat = config.context_length is ContextLength.compat
        self.num_relaxed = 0  # contexts of all calls that contain target patches; never used in sampling
        # A square context on a wide grid could not reach the area of context_scale.
        context_aspect = [1.0, 1.0] if self.compat else [grid[0] / grid[1]] * 2
        sizes = reference_sizes if self.compat else independent_sizes
        self._target_sizes = sizes(grid, config.target_scale, config.target_aspect)
        self._context_sizes = sizes(grid, config.context_scale, context_aspect)
        if config.context_length is ContextLength.fixed:
            self._needed = int(config.context_fraction * self.num_patches + 1e-9)
        else:
            self._needed = config.min_patches + 1
        self._check_geometry()

    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        masks, placement = self._sample(batch_size, generator)
        if placement.relaxed:
            if not self.num_relaxed:
                _LOG.warning("masks.context_length=compat: a context had no room and contains target patches")
            self.num_relaxed += placement.relaxed
        return masks

    def _sample(self, batch_size: int, generator: torch.Generator) -> tuple[Masks, _Placement]:
        target_size, context_size = self._sample_sizes(generator)
        place = self._place_as_reference if self.compat else self._place
        placement = place(batch_size, target_size, context_size, generator)
        candidates = placement.candidates.flatten(0, 1)
        if self.config.context_length is ContextLength.fixed:
            context = random_subset(candidates, self._needed, generator)
        else:
            count = int(candidates.sum(1).min())
            context = first_subset(candidates, count) if self.compat else random_subset(candidates, count, generator)
        context = context.unflatten(0, (batch_size, self.config.num_contexts))
        return Masks(context, placement.targets, Pairing.product), placement

    def _sample_sizes(self, generator: torch.Generator) -> tuple[BlockSize, BlockSize]:
        if not self.compat:
            return self._target_sizes.sample(generator), self._context_sizes.sample(generator)
        config = self.config
        target = reference_block_size(generator, self.grid, config.target_scale, config.target_aspect)
        return target, reference_block_size(generator, self.grid, config.context_scale, [1.0, 1.0])

    def _place(
        self, batch_size: int, target_size: BlockSize, context_size: BlockSize, generator: torch.Generator
    ) -> _Placement:
        """Place blocks uniformly by rejection sampling: every context of an image must keep enough candidates."""
        placement = self._place_once(batch_size, target_size, context_size, generator)
        pending = self._too_small(placement).nonzero().flatten()
        for _ in range(_MAX_REJECTIONS):
            if not len(pending):
                return placement
            retry = self._place_once(len(pending), target_size, context_size, generator)
            placement.targets[pending], placement.candidates[pending] = retry.targets, retry.candidates
            pending = pending[self._too_small(retry)]
        raise ValueError(
            f"{len(pending)} images have no room for contexts of {self._needed} patches after {_MAX_REJECTIONS} trials "
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
        return _Placement(patches_in_blocks(top, left, target_size, self.grid), candidates)

    def _place_as_reference(
        self, batch_size: int, target_size: BlockSize, context_size: BlockSize, generator: torch.Generator
    ) -> _Placement:
        """Sample each context again until it has enough patches; after every 20 failures it may overlap one more
        target, from the last one backwards, so that the full block is accepted in the end."""
        num_targets, num_contexts = self.config.num_targets, self.config.num_contexts
        top, left = self._corners((batch_size, num_targets), target_size, generator)
        candidates = torch.empty(batch_size * num_contexts, self.num_patches, dtype=torch.bool)
        pending = torch.arange(batch_size * num_contexts)
        relaxed = attempt = 0
        while len(pending):
            corners = self._corners((len(pending), 1), context_size, generator)
            contexts = covered(*corners, context_size, self.grid)
            excluded = 0 if self.config.allow_overlap else num_targets - attempt // _TRIES_PER_CONSTRAINT
            if excluded > 0:
                image = pending // num_contexts
                contexts &= ~covered(top[image, :excluded], left[image, :excluded], target_size, self.grid)
            candidates[pending] = contexts
            pending = pending[contexts.sum(1) <= self.config.min_patches]
            attempt += 1
            relaxed += len(pending) if attempt == _TRIES_PER_CONSTRAINT else 0
        candidates = candidates.view(batch_size, num_contexts, self.num_patches)
        return _Placement(patches_in_blocks(top, left, target_size, self.grid), candidates, relaxed)

    def _corners(
        self, shape: tuple[int, int], size: BlockSize, generator: torch.Generator
    ) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B M"]]:
        """Sample top and left of blocks, uniform over all positions on the grid."""
        # The reference excludes the last position of both directions: the last row and column are never visible.
        last = 0 if self.compat else 1
        top = torch.randint(self.grid[0] - size.height + last, shape, generator=generator)
        return top, torch.randint(self.grid[1] - size.width + last, shape, generator=generator)

    def _too_small(self, placement: _Placement) -> Bool[Tensor, "B"]:
        counts = torch.from_numpy(np.count_nonzero(placement.candidates.numpy(), axis=2))
        return (counts < self._needed).any(1)

    def _check_geometry(self) -> None:
        """Refuse a geometry without placements, or one that only atypical placements meet."""
        config, grid = self.config, f"the {self.grid[0]}x{self.grid[1]} grid"
        finer = f"a finer patch (half of backbone.patch_size gives {2 * self.grid[0]}x{2 * self.grid[1]})"
        demand = f"masks.min_patches={config.min_patches} requires more than {config.min_patches}"
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
        """Check, for the tightest sizes, that enough placements leave a large enough context."""
        generator = generator_for("multiblock feasibility")
        removed = 0 if self.config.allow_overlap else self.config.num_targets
        pairs = [(target, context) for target in self._target_sizes.sizes for context in self._context_sizes.sizes]
        pairs.sort(key=lambda pair: pair[1].area - removed * pair[0].area)
        for target_size, context_size in pairs[:_CHECKED_PAIRS]:
            if context_size.area - removed * target_size.area >= self._needed:
                return  # every placement does, and all following pairs have more room
            placement = self._place_once(_CHECKED_IMAGES, target_size, context_size, generator)
            room = placement.candidates.sum(2).amin(1)
            acceptance = (room >= self._needed).float().mean().item()
            if acceptance < _MIN_ACCEPTANCE:
                raise ValueError(self._no_room(target_size, context_size, acceptance, int(room.median())))

    def _no_room(self, target_size: BlockSize, context_size: BlockSize, acceptance: float, typical: int) -> str:
        config = self.config
        if config.context_length is ContextLength.fixed:
            cause = f"masks.context_fraction={config.context_fraction} requires contexts of {self._needed} patches"
            fraction = math.floor(100 * typical / self.num_patches) / 100
            remedy = f"masks.context_fraction={fraction:g}, " if fraction > 0 else ""
        else:
            cause = f"masks.min_patches={config.min_patches} requires contexts of {self._needed} patches or more"
            remedy = f"masks.min_patches={typical - 1}, " if typical > 0 else ""
        return (
            f"{cause} on the {self.grid[0]}x{self.grid[1]} grid. With targets of {target_size} patches "
            f"(masks.num_targets={config.num_targets}, masks.target_scale={list(config.target_scale)}) "
            f"and contexts of {context_size} "
            f"(masks.context_scale={list(config.context_scale)}, masks.num_contexts={config.num_contexts}), "
            f"{acceptance:.1%} of random placements leave that many; half of them leave {typical}. "
            f"Use {remedy}a smaller masks.target_scale, fewer masks.num_targets or masks.allow_overlap=true."
        )
