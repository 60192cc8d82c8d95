"""Subsets of patches, equally many in every image, as sorted indices."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

_EXCLUDED_BIT = 30  # of an int32 key: sorts behind every candidate


def random_subset(candidates: Bool[Tensor, "B N"], count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """``count`` candidates of every image, sorted, each subset equally likely.

    Args:
        candidates: every row holds at least ``count`` True.
    """
    num_patches = candidates.shape[1]
    index_mask = (1 << (num_patches - 1).bit_length()) - 1
    # A key is a random number with the patch index in its low bits: the keys of an image are distinct, and numpy's
    # vectorised partition of plain integers replaces the several times slower torch.topk.
    keys = torch.empty(candidates.shape, dtype=torch.int32).random_(generator=generator)
    keys &= (1 << _EXCLUDED_BIT) - 1 - index_mask
    keys |= torch.arange(num_patches, dtype=torch.int32)
    keys |= (~candidates).int() << _EXCLUDED_BIT
    smallest = np.partition(keys.numpy(), count - 1, axis=1)[:, :count]
    return torch.from_numpy(np.sort(smallest & index_mask, axis=1)).long()


def first_subset(candidates: Bool[Tensor, "B N"], count: int) -> Int[Tensor, "B K"]:
    """The first ``count`` candidates of every image in raster order.

    Args:
        candidates: every row holds at least ``count`` True.
    """
    available = candidates.sum(1)
    starts = available.cumsum(0) - available
    patches = torch.from_numpy(np.flatnonzero(candidates.numpy()))
    return patches[starts[:, None] + torch.arange(count)] % candidates.shape[1]
