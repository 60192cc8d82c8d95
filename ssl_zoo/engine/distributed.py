"""Processes of one run: ranks, devices and the few collectives that the engine needs; all are no-ops on one process."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ssl_zoo.engine.settings import Device, Parallel
from ssl_zoo.machine import limit_threads
from ssl_zoo.world import World


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device
    groups: dict[str, dist.ProcessGroup] = field(default_factory=dict)  # emptied when the processes end

    @property
    def control(self) -> dist.ProcessGroup | None:
        """A CPU group for flags, so that agreeing on a stop never syncs the device."""
        return self.groups.get("control")

    @property
    def saving(self) -> dist.ProcessGroup | None:
        """A CPU group of the threads that write checkpoints."""
        return self.groups.get("saving")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def world(self) -> World:
        """The collectives that methods see."""
        return World() if self.world_size == 1 else Ranks(self.world_size, self.rank)

    def any(self, flag: bool) -> bool:
        """Return on every rank whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def first(self, value: int) -> int:
        """Return the value of rank 0 on every rank."""
        if self.world_size == 1:
            return value
        shared = torch.tensor([value])
        dist.broadcast(shared, 0, group=self.control)
        return int(shared.item())

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values


class Ranks(World):
    """Several processes; the backward passes suit an engine that averages gradients over ranks."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank

    def mean(self, values: Tensor) -> Tensor:
        return _Mean.apply(values, self.size)

    def gather(self, rows: Tensor) -> Tensor:
        return _Gather.apply(rows, self.size)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _summed(values) / size

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Each rank's loss depends on every rank's values. The mean over ranks that the engine takes of the parameters'
        # gradients has one factor 1 / size, this mean has the other.
        return _summed(gradient) / ctx.size, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:
        ctx.size = size
        parts = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # The sum over ranks of what their losses ask of this rank's rows; the engine's mean over ranks follows.
        return _summed(gradient).chunk(ctx.size)[dist.get_rank()], None


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)  # autograd may hand one gradient to several functions
    dist.all_reduce(total)
    return total


class LostRank(RuntimeError):
    """Another rank has ended or does not answer; its own output has the cause."""


@contextmanager
def processes(device: Device, parallel: Parallel = Parallel.ddp, timeout_minutes: float = 30) -> Iterator[Processes]:
    """Join the run's processes as torchrun describes them in the environment, or run alone.

    A process alone with ``parallel=fsdp2`` opens a process group of one rank, since FSDP2 needs one.

    ``auto`` never takes MPS. No Mac was at hand to test it on, and an operation that torch lacks there would end a run
    that works on the CPU.

    Args:
        timeout_minutes: how long ranks wait for each other.

    Raises:
        ValueError: a device that is not there, more ranks on a machine than devices, or several ranks on MPS.
        LostRank: the block waited for a rank that has ended or did not answer in time.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device is Device.mps and (world_size > 1 or parallel is Parallel.fsdp2):
        raise ValueError(
            f"trainer.device=mps: torch has no collectives for MPS, so that {world_size} processes with "
            f"trainer.parallel={parallel.value} can't train on it; use one process with trainer.parallel=ddp"
        )
    limit_threads()
    local = _local_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if local.type == "cuda":
        torch.cuda.set_device(local)
    if world_size == 1 and parallel is Parallel.ddp:
        yield Processes(0, 1, local)
        return
    backend = "nccl" if local.type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    # A process alone has no address to meet at, which torchrun would give.
    store = dist.HashStore() if world_size == 1 else _meeting_place(timeout)
    device_id = local if backend == "nccl" else None
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device_id
    )
    groups: dict[str, dist.ProcessGroup] = {}
    try:
        groups |= {name: dist.new_group(backend="gloo", timeout=timeout) for name in ("control", "saving")}
        yield Processes(rank, world_size, local, groups)
    except (RuntimeError, dist.DistError) as error:
        lost = _lost_rank(error, rank, timeout_minutes)
        if lost is None:
            raise
        raise lost from error
    finally:
        dist.destroy_process_group()
        groups.clear()
        # Gloo's threads end with their groups, which trainers hold. One that releases a tensor when Python has begun to
        # shut down aborts the process ("terminate called without an active exception").
        gc.collect()


def _meeting_place(timeout: timedelta) -> dist.Store:
    """Return the store at which the ranks find each other.

    torchrun gives a restarted group the store of the group before it, with the addresses of dead processes.
    """
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    return dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def concerns_another_rank(error: BaseException) -> bool:
    """Return whether an error of torch's collectives shows that another rank has ended or does not answer."""
    return _lost_rank(error, 0, 0) is not None


def _lost_rank(error: BaseException, rank: int, timeout_minutes: float) -> LostRank | None:
    if type(error) is not RuntimeError and not isinstance(error, dist.DistError):  # gloo's errors have no class
        return None
    message = str(error).lower()
    if "timed out" in message:
        return LostRank(
            f"rank {rank} waited trainer.timeout_minutes={timeout_minutes:g} for another rank. It hangs or is very "
            "slow: see its output, and raise the setting if such a wait is expected. The same command resumes from the "
            "last checkpoint"
        )
    if "closed by peer" in message or "reset by peer" in message:
        return LostRank(f"rank {rank} lost another rank, which has ended; see the output of that rank")
    return None


def _local_device(device: Device, local_rank: int) -> torch.device:
    if device is Device.mps:
        if not torch.backends.mps.is_available():
            raise ValueError("trainer.device=mps, but torch finds no MPS device; use trainer.device=auto or cpu")
        return torch.device("mps")
    available = torch.cuda.device_count() if device is not Device.cpu else 0
    if device is Device.cuda and available == 0:
        raise ValueError("trainer.device=cuda, but torch finds no CUDA device; use trainer.device=auto or cpu")
    if available == 0:
        return torch.device("cpu")
    if local_rank >= available:
        raise ValueError(f"this machine has {available} CUDA devices and rank {local_rank} of it asks for one more")
    return torch.device("cuda", local_rank)
