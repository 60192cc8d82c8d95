"""What FSDP2 leaves to one rank of many: its shards, what it gathers meanwhile, what it sends."""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.sharding import all_ranks, shard
from ssl_zoo.planning.plan import plan_batch, plan_step


@dataclass(frozen=True)
class Sharded:
    """Bytes of rank 0, which has the first and largest shards, counted in a rehearsed step.

    Attributes:
        trained: of its shards of the parameters with a gradient.
        fixed: of its shards of all others.
        working: of gathered parameters, whole gradients and buffers of collectives at their peak.
        gathered: that all-gathers of one micro-batch put together.
        scattered: of whole gradients that reduce-scatters of one micro-batch divide.
    """

    trained: int
    fixed: int
    working: int
    gathered: int
    scattered: int


def rehearse_sharded(config: RunConfig, world_size: int) -> Sharded:
    """Shard the method among ranks that need not be there and run forward and backward passes without numbers.

    Parameters are float32 and travel as such; autocast converts what was gathered. Shards, buffers and traffic do not
    depend on the device nor on the number of images, so that a few images on a fake CPU tell all of it.
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
        trained, fixed = (_shard_bytes(method, needs_grad) for needs_grad in (True, False))
    return Sharded(trained, fixed, collectives.peak, collectives.gathered, collectives.scattered)


@contextmanager
def _ranks(world_size: int) -> Iterator[DeviceMesh]:
    """Rank 0 of a group whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield all_ranks(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


class _Collectives(TorchDispatchMode):
    """Traffic, and the living bytes of what FSDP2's own operations and collectives have touched, but for shards."""

    def __init__(self, shards: Sequence[Tensor]) -> None:
        super().__init__()
        self._shards = [shard.untyped_storage() for shard in shards]
        self._storages: dict[int, weakref.ref] = {}
        self.peak = self.gathered = self.scattered = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("fsdp", "c10d"):
            tensors = [tensor for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)]
            self._count(func.overloadpacket.__name__, max(t.numel() * t.element_size() for t in tensors))
            if func.overloadpacket.__name__.startswith("_reduce_scatter"):
                self._shards.append(args[0].untyped_storage())  # of gradients, where they stay
            for tensor in tensors:
                self._enter(tensor.untyped_storage())
            # FSDP2 frees parameters by resizing their storages, so sizes are read anew each time.
            living = [storage() for storage in self._storages.values()]
            self.peak = max(self.peak, sum(storage.nbytes() for storage in living if storage is not None))
        return result

    def _count(self, operation: str, largest: int) -> None:
        if operation.startswith("_allgather"):
            self.gathered += largest
        elif operation.startswith("_reduce_scatter"):
            self.scattered += largest

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages and all(key != shard._cdata for shard in self._shards):
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key))


def _shard_bytes(module: nn.Module, requires_grad: bool) -> int:
    shards = [p.to_local() for p in module.parameters() if p.requires_grad is requires_grad]
    return sum(local.numel() * local.element_size() for local in shards)
