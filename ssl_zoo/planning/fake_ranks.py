"""Simulation of FSDP2 in a group of fake ranks: the shards, gathered parameters and traffic of one rank."""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.sharding import all_ranks, shard
from ssl_zoo.planning.memory_simulation import num_bytes
from ssl_zoo.planning.plan import plan_batch, plan_step


@dataclass(frozen=True)
class SimulatedSharding:
    """Bytes of rank 0, which has the first and largest shards, in a simulated step.

    Attributes:
        trained: its shards of the parameters with a gradient.
        fixed: its shards of all other parameters.
        working: gathered parameters, full gradients and buffers of collectives at their peak.
        gathered: outputs of the all-gathers of one micro-batch.
        scattered: full gradients that the reduce-scatters of one micro-batch take.
    """

    trained: int
    fixed: int
    working: int
    gathered: int
    scattered: int


def simulate_sharding(config: RunConfig, world_size: int) -> SimulatedSharding:
    """Shard the method among fake ranks and run forward and backward passes on fake tensors.

    Parameters are float32 and sent as such; autocast converts them after gathering. Shards, buffers and traffic depend
    neither on the device nor on the number of images, so that a few images on a fake CPU suffice.
    """
    views = build_views(config.views, config.backbone)
    batch = plan_batch(views, build_generators(views, config.masks, config.backbone), config.trainer.batch_size)
    method = build_run_method(config, device="meta")
    with _ranks(world_size) as mesh, FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        method = method.to_empty(device="cpu")
        shard(method, config.trainer, mesh)
        with _Collectives([parameter.to_local() for parameter in method.parameters()]) as collectives:
            fake = batch.map(lambda t: torch.empty(t.shape, dtype=t.dtype))
            method(fake, plan_step(method, "cpu")).loss.backward()
        shards = [(parameter.requires_grad, parameter.to_local()) for parameter in method.parameters()]
        trained, fixed = (
            num_bytes([local for needs_grad, local in shards if needs_grad is kind]) for kind in (True, False)
        )
    return SimulatedSharding(trained, fixed, collectives.peak, collectives.gathered, collectives.scattered)


@contextmanager
def _ranks(world_size: int) -> Iterator[DeviceMesh]:
    """Open a process group as rank 0 whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield all_ranks(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


class _Collectives(TorchDispatchMode):
    """Counts traffic, and the live bytes that FSDP2's operations and collectives have touched, except shards."""

    def __init__(self, shards: Sequence[Tensor]) -> None:
        super().__init__()
        self._shards = [shard.untyped_storage() for shard in shards]
        self._storages: dict[int, weakref.ref] = {}
        self.peak = self.gathered = self.scattered = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("fsdp", "c10d"):
            tensors = [tensor for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)]
            operation, largest = func.overloadpacket.__name__, max(num_bytes([tensor]) for tensor in tensors)
            if operation.startswith("_allgather"):
                self.gathered += largest
            elif operation.startswith("_reduce_scatter"):
                self.scattered += largest
                self._shards.append(args[0].untyped_storage())  # of gradients, where they remain
            for tensor in tensors:
                self._track(tensor.untyped_storage())
            # FSDP2 frees parameters by resizing their storages, so sizes are read again each time.
            live = [storage() for storage in self._storages.values()]
            self.peak = max(self.peak, sum(storage.nbytes() for storage in live if storage is not None))
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages and all(key != shard._cdata for shard in self._shards):
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key))
