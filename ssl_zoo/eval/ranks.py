"""Sums over the ranks of a process group, which evaluators share."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks; 0 and 1 without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(*tensors: Tensor) -> Sequence[Tensor]:
    """Add tensors of one dtype and device over all ranks, in one collective; their gradients are not followed."""
    if rank_and_world_size()[1] == 1:
        return tensors
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def rows_of_rank(num_rows: int) -> slice:
    """Return this rank's consecutive share of a batch; with fewer rows than ranks some shares are empty."""
    rank, world_size = rank_and_world_size()
    return slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
