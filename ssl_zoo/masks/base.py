"""What every mask generator produces, and the contract it keeps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ssl_zoo.registry import Registry


class Pairing(Enum):
    """Which context block predicts which target block."""

    product = "product"  # every context predicts every target (I-JEPA)
    zip = "zip"  # context c predicts target c (data2vec 2.0)


@dataclass(frozen=True)
class Masks:
    """Patch indices 0..N-1 of a batch, row-major on the grid; prefix tokens are never counted.

    B images, C context blocks of K visible patches each, M target blocks of T patches each.

    ``masked`` is there where one set of patches is masked from the encoder. It may be ragged: images may hide different
    numbers of patches. Then it alone is the truth, for methods that replace patches at the encoder's input and weigh
    their loss by it. ``context`` and ``targets`` are cut to the batch's smallest number of seen and of masked patches,
    a uniformly random choice of each image's: nothing is padded, so a context patch is never masked, a target always
    is, and a method that reads only the indices stays right and leaves a few patches out.
    """

    context: Int[Tensor, "B C K"]
    targets: Int[Tensor, "B M T"]
    pairing: Pairing = Pairing.product
    masked: Bool[Tensor, "B N"] | None = None  # True = replaced at the encoder's input; counts may differ per image

    def paired(self, per_target: Shaped[Tensor, "B M *T"]) -> Shaped[Tensor, "B C pairs *T"]:
        """For each context the entries of those target blocks that it predicts: all M, or the one of its own index."""
        if self.pairing is Pairing.zip:
            return per_target.unsqueeze(2)
        num_contexts = self.context.shape[1]
        return per_target.unsqueeze(1).expand(-1, num_contexts, *per_target.shape[1:])

    def all_masked(self, num_patches: int) -> Bool[Tensor, "B N"]:
        """``masked`` where it is set, else the union of all target blocks."""
        if self.masked is not None:
            return self.masked
        targets = self.targets.flatten(1)
        nothing = torch.zeros(len(targets), num_patches, dtype=torch.bool, device=targets.device)
        return nothing.scatter(1, targets, True)

    def everywhere(self, num_patches: int) -> "Masks":
        """The same contexts with all patches as one target block, for targets of a whole image."""
        patches = torch.arange(num_patches, device=self.targets.device)
        return replace(self, targets=patches.expand(len(self.targets), 1, -1), pairing=Pairing.product)

    def map(self, function) -> "Masks":
        """The same masks with ``function`` applied to every tensor (a device copy, a slice of the images)."""
        masked = None if self.masked is None else function(self.masked)
        return Masks(function(self.context), function(self.targets), self.pairing, masked)


@dataclass
class MasksConfig:
    """Base of every mask generator's config."""


class MaskGenerator(ABC):
    """Draws the masks of one batch: a pure function of the generator's seed.

    Args:
        config: the generator's own dataclass.
        grid: patch rows and columns.

    Raises:
        ValueError: at construction, when the geometry can't be met on this grid; the message names keys and remedies.
    """

    def __init__(self, config: MasksConfig, grid: tuple[int, int]) -> None:
        self.config, self.grid = config, grid
        self.num_patches = grid[0] * grid[1]

    @abstractmethod
    def __call__(self, batch_size: int, generator: torch.Generator) -> Masks:
        """Masks for ``batch_size`` images, on the CPU; vectorised over the images."""


MASKS = Registry("mask generator", "masks")
