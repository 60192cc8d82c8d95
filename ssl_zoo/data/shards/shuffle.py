"""An order for slow disks: one shard after the other, shuffled within a window."""

import torch
from jaxtyping import Int
from torch import Tensor


def windowed(
    shard: Int[Tensor, "n"], offset: Int[Tensor, "n"], window: int, generator: torch.Generator
) -> Int[Tensor, "n"]:
    """Order all samples by shards in random order, then move each by fewer than ``window`` positions.

    Position p of the sequential stream gets the key p + U(0, window), and the keys are sorted: no sample moves before
    one that was ``window`` positions ahead of it. This replaces a shuffle buffer by one sort, and nothing must be kept
    in memory or replayed.

    Args:
        shard, offset: the number of each sample's shard and the offset in it.
        window: in samples; 1 only shuffles the shards.
    """
    rank = torch.randperm(int(shard.max()) + 1, generator=generator)
    by_offset = offset.argsort(stable=True)
    stream = by_offset[rank[shard[by_offset]].argsort(stable=True)]
    keys = torch.arange(len(shard)) + window * torch.rand(len(shard), dtype=torch.float64, generator=generator)
    return stream[keys.argsort(stable=True)]
