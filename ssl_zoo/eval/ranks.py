"""This process among the ranks of its group, and the collectives that evaluators share."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """Return the rank and the number of ranks; (0, 1) without a process group."""
    is_distributed = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if is_distributed else (0, 1)


def is_main_process() -> bool:
    """Return whether this is the only process or rank 0 of its group."""
    return rank_and_size()[0] == 0


def on_all_ranks(flag: bool) -> bool:
    """Return on every rank whether the flag is true on all ranks."""
    if rank_and_size()[1] == 1:
        return flag
    shared = torch.tensor([int(flag)], device=exchange_device())
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return bool(shared.item())


def gather_equal(values: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, which are of one shape, by rank."""
    shared = values.to(exchange_device()).contiguous()
    received = [torch.empty_like(shared) for _ in range(dist.get_world_size())]
    dist.all_gather(received, shared)
    return [tensor.to(values.device) for tensor in received]


def exchange_device() -> torch.device:
    """Return the device of tensors in collectives: NCCL takes none of the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@torch.no_grad()
def sum_over_ranks(*tensors: Tensor) -> Sequence[Tensor]:
    """Add tensors of one dtype and device over all ranks, in one collective; their gradients are not followed."""
    if rank_and_size()[1] == 1 or not tensors:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    total = flat.to(exchange_device())
    dist.all_reduce(total)
    parts = total.to(flat.device).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def rows_of_rank(num_rows: int) -> slice:
    """Return this rank's consecutive share of a batch; with fewer rows than ranks some shares are empty."""
    rank, world_size = rank_and_size()
    return slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
