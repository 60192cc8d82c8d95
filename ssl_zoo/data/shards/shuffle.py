"""An order of shards that a disk likes: one shard after the other, mixed within a window."""

import torch
from jaxtyping import Int
from torch import Tensor


def windowed(
    shard: Int[Tensor, "n"], offset: Int[Tensor, "n"], window: int, generator: torch.Generator
) -> Int[Tensor, "n"]:
    """All samples, shards in random order, each fewer than ``window`` places from where plain reading would find it.

    Every place p of that stream gets the key p + U(0, window), and the keys are sorted: no sample moves before one that
    stood ``window`` places ahead of it. What a shuffle buffer does one by one is one sort here, and nothing has to be
    kept in memory or replayed.

    Args:
        shard, offset: the number of each sample's shard and the place in it.
        window: in samples; 1 only shuffles the shards.
    """
    rank = torch.randperm(int(shard.max()) + 1, generator=generator)
    by_offset = offset.argsort(stable=True)
    stream = by_offset[rank[shard[by_offset]].argsort(stable=True)]
    keys = torch.arange(len(shard)) + window * torch.rand(len(shard), dtype=torch.float64, generator=generator)
    return stream[keys.argsort(stable=True)]
