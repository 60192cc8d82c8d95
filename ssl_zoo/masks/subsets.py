"""Subsets of patches, equally many in every image, as sorted indices."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ssl_zoo.masks.base import Masks

_EXCLUDED_BIT = 30  # of an int32 key: sorts behind every candidate


def random_subset(candidates: Bool[Tensor, "B N"], count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """``count`` candidates of every image, sorted, each subset equally likely.

    A row with fewer candidates gives all of them and other patches, again each choice equally likely.
    """
    num_patches = candidates.shape[1]
    index_mask = (1 << (num_patches - 1).bit_length()) - 1
    # A key is a random number with the patch index in its low bits: the keys of an image are distinct, and numpy's
    # vectorised partition of plain integers replaces the several times slower torch.topk.
    keys = torch.empty(candidates.shape, dtype=torch.int32).random_(generator=generator)
    keys &= (1 << _EXCLUDED_BIT) - 1 - index_mask
    keys += torch.arange(num_patches, dtype=torch.int32)
    keys.add_(~candidates, alpha=1 << _EXCLUDED_BIT)
    smallest = np.partition(keys.numpy(), count - 1, axis=1)[:, :count] & index_mask
    narrow = smallest.astype(np.uint16) if index_mask < 1 << 16 else smallest  # sorts in half the time
    return torch.from_numpy(np.sort(narrow, axis=1).astype(np.int64))


def first_subset(candidates: Bool[Tensor, "B N"], count: int) -> Int[Tensor, "B K"]:
    """The first ``count`` candidates of every image in raster order.

    Args:
        candidates: every row holds at least ``count`` True.
    """
    available = candidates.sum(1)
    starts = available.cumsum(0) - available
    patches = torch.from_numpy(np.flatnonzero(candidates.numpy()))
    return patches[starts[:, None] + torch.arange(count)] % candidates.shape[1]


def masks_of(masked: Bool[Tensor, "B N"], generator: torch.Generator) -> Masks:
    """One context and one target block per image: what isn't masked, and what is.

    Where images hide different numbers of patches, both are cut to the batch's smallest (see ``Masks``).
    """
    counts = masked.sum(1)
    num_targets, num_context = int(counts.min()), masked.shape[1] - int(counts.max())
    if num_targets + num_context == masked.shape[1]:
        context, targets = first_subset(~masked, num_context), first_subset(masked, num_targets)
    else:
        context = random_subset(~masked, num_context, generator)
        targets = random_subset(masked, num_targets, generator)
    return Masks(context[:, None], targets[:, None], masked=masked)


def part_of(total: int, fraction: float) -> int:
    """``fraction`` of ``total``, rounded down; 0.3 of 10 is 3 whatever the last bit of 10 * 0.3 says."""
    return math.floor(total * fraction + 1e-9)


def check_fraction(key: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{key}={value} must lie in (0, 1): some patches are masked and some are seen")


def check_both_sides(key: str, value: float, num_hidden: int, total: int, things: str) -> None:
    """Refuse a fraction that leaves nothing to see or nothing to predict.

    Args:
        things: what is counted, with its grid, e.g. ``"patches of the 4x4 grid"``.
    """
    if not 0 < num_hidden < total:
        raise ValueError(
            f"{key}={value} hides {num_hidden} of {total} {things}; at least one must be masked and one seen. Use a "
            f"value between {1 / total:.3g} and {1 - 1 / total:.3g}, or a finer patch (backbone.patch_size)."
        )
