"""Masks, and the interface of mask generators."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings


class Pairing(Enum):
    """Which context predicts which target block."""

    product = "product"  # every context predicts every target (I-JEPA)
    zip = "zip"  # context c predicts target c (data2vec 2.0)


@dataclass(frozen=True)
class Masks:
    """Patch indices 0..N-1 of a batch, row-major on the grid; prefix tokens are never counted.

    B images, C contexts of K visible patches each, M target blocks of T patches each.

    ``masked`` is set where each image has a single mask. It may be ragged: images may have different numbers of masked
    patches. Methods that put mask tokens at the encoder's input read ``masked`` and weight their loss by it.
    ``context`` and ``targets`` are then random subsets, of the batch's smallest number of visible and of masked
    patches. Nothing is padded: a context patch is always visible and a target always masked, and a method that reads
    only the indices is correct but misses a few patches.
    """

    context: Int[Tensor, "B C K"]
    targets: Int[Tensor, "B M T"]
    pairing: Pairing = Pairing.product
    masked: Bool[Tensor, "B N"] | None = None  # True = replaced at the encoder's input; counts may differ per image

    def paired(self, per_target: Shaped[Tensor, "B M *T"]) -> Shaped[Tensor, "B C pairs *T"]:
        """Select the target blocks that each context predicts: all M, or only the one of its own index."""
        if self.pairing is Pairing.zip:
            return per_target.unsqueeze(2)
        num_contexts = self.context.shape[1]
        return per_target.unsqueeze(1).expand(-1, num_contexts, *per_target.shape[1:])

    def all_masked(self, num_patches: int) -> Bool[Tensor, "B N"]:
        """Return ``masked`` where it is set, else the union of all target blocks."""
        if self.masked is not None:
            return self.masked
        targets = self.targets.flatten(1)
        nothing = torch.zeros(len(targets), num_patches, dtype=torch.bool, device=targets.device)
        return nothing.scatter(1, targets, True)

    def everywhere(self, num_patches: int) -> "Masks":
        """Return the same contexts with all patches as a single target block, to compute targets of the full image."""
        patches = torch.arange(num_patches, device=self.targets.device)
        return replace(self, targets=patches.expand(len(self.targets), 1, -1), pairing=Pairing.product)

    def map(self, function) -> "Masks":
        """Apply ``function`` to every tensor (a device copy, a slice of the images)."""
        masked = None if self.masked is None else function(self.masked)
        return Masks(function(self.context), function(self.targets), self.pairing, masked)


@dataclass
class MasksConfig(Settings):
    """Base class of every mask generator's config."""

    section = "masks"

    def check_ranges(self, *names: str) -> None:
        """Refuse [low, high] ranges whose low exceeds their high."""
        for name in names:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"masks.{name}=[{low}, {high}] must be [low, high] with low <= high")


class MaskGenerator(ABC):
    """Samples the masks of one batch, a pure function of the generator's seed.

    Args:
        config: the generator's own dataclass.
        grid: patch rows and columns.

    Raises:
        ValueError: at construction, if no such masks exist on this grid; the message names keys and remedies.
    """

    def __init__(self, config: MasksConfig, grid: tuple[int, int]) -> None:
        self.config, self.grid = config, grid
        self.num_patches = grid[0] * grid[1]
        self._shape = f"the {grid[0]}x{grid[1]} grid"  # for messages

    @abstractmethod
    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        """Sample masks of ``batch_size`` images on the CPU, vectorised over the images."""


MASKS = Registry("mask generator", "masks")
