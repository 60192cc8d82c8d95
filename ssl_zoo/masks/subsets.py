"""Random and first subsets of patches of a fixed size per image, as sorted indices."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ssl_zoo.masks.base import Masks

_EXCLUDED_BIT = 30  # of an int32 key; it sorts a patch after every candidate


def random_subset(candidates: Bool[Tensor, "B N"], count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """Sample ``count`` candidates of every image, sorted, every subset equally likely.

    A row with fewer candidates is completed by other patches, again every choice equally likely.
    """
    num_patches = candidates.shape[1]
    index_mask = (1 << (num_patches - 1).bit_length()) - 1
    # A key is a random number with the patch index in its low bits: the keys of an image are distinct, and numpy's
    # vectorised partition of integers replaces torch.topk, which is several times slower.
    keys = torch.empty(candidates.shape, dtype=torch.int32).random_(generator=generator)
    keys &= (1 << _EXCLUDED_BIT) - 1 - index_mask
    keys += torch.arange(num_patches, dtype=torch.int32)
    keys.add_(~candidates, alpha=1 << _EXCLUDED_BIT)
    smallest = np.partition(keys.numpy(), count - 1, axis=1)[:, :count] & index_mask
    narrow = smallest.astype(np.uint16) if index_mask < 1 << 16 else smallest  # sorts in half the time
    return torch.from_numpy(np.sort(narrow, axis=1).astype(np.int64))


def first_subset(candidates: Bool[Tensor, "B N"], count: int) -> Int[Tensor, "B K"]:
    """Return the first ``count`` candidates of every image in raster order.

    Args:
        candidates: every row holds at least ``count`` True.
    """
    available = candidates.sum(1)
    starts = available.cumsum(0) - available
    patches = torch.from_numpy(np.flatnonzero(candidates.numpy()))
    return patches[starts[:, None] + torch.arange(count)] % candidates.shape[1]


def masks_of(masked: Bool[Tensor, "B N"], generator: torch.Generator) -> Masks:
    """Build masks with one context, the visible patches, and one target block, the masked ones, per image.

    Where the number of masked patches varies, both are cut to the batch's smallest (see ``Masks``).
    """
    counts = masked.sum(1)
    num_targets, num_context = int(counts.min()), masked.shape[1] - int(counts.max())
    if num_targets + num_context == masked.shape[1]:
        context, targets = first_subset(~masked, num_context), first_subset(masked, num_targets)
    else:
        context = random_subset(~masked, num_context, generator)
        targets = random_subset(masked, num_targets, generator)
    return Masks(context[:, None], targets[:, None], masked=masked)


def floor_fraction(total: int, fraction: float) -> int:
    """Round ``total * fraction`` down, but up where it misses an integer by a rounding error."""
    return math.floor(total * fraction + 1e-9)


def check_num_masked(mask_ratio: float, num_masked: int, total: int, things: str) -> None:
    """Refuse a mask ratio that leaves no patch visible or none to predict.

    Args:
        things: what is counted, with its grid, e.g. ``"patches of the 4x4 grid"``.
    """
    if not 0 < num_masked < total:
        raise ValueError(
            f"masks.mask_ratio={mask_ratio} masks {num_masked} of {total} {things}; at least one must be masked and "
            f"one visible. Use a value between {1 / total:.3g} and {1 - 1 / total:.3g}, or a finer patch "
            "(backbone.patch_size)."
        )
