"""Methods whose weights, EMA weights, gradients and optimizer state are sharded over the ranks (FSDP2)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.method import Method
from ssl_zoo.nn import BACKBONES, TRANSFORMER_BLOCKS, ViT, set_fused_attention


def all_ranks(device: torch.device) -> DeviceMesh:
    """Return the mesh of all ranks of the default process group."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(method: Method, config: TrainerConfig, mesh: DeviceMesh) -> None:
    """Shard every parameter of a method over ranks, along its first dimension.

    Units of gathering are each transformer block, each network with EMA weights, the rest of each network, and what the
    method holds beside its networks. EMA weights are sharded as the weights they follow, so that their updates need no
    communication.

    Raises:
        ValueError: no process group has been opened.
    """
    if not dist.is_initialized():
        raise ValueError("trainer.parallel=fsdp2 needs a process group, also alone: processes(device, Parallel.fsdp2)")
    # Networks end in `unflatten`, a view; nobody changes their outputs in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    units = set(_units(method))
    for module in reversed(list(method.modules())):  # inner ones first
        if module in units:
            # EMA weights never see a backward pass, after which they would be resharded.
            trains = any(parameter.requires_grad for parameter in module.parameters())
            fully_shard(module, mesh=mesh, reshard_after_forward=config.reshard_after_forward or not trains)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "visualize")
    # The first module to run becomes the root of all gathering. That must be the method, also where a network of it is
    # probed before the first step.
    method._get_fsdp_state()._lazy_init()


def _units(method: Method) -> Iterator[nn.Module]:
    yield from (module for module in method.modules() if isinstance(module, TRANSFORMER_BLOCKS))
    for ema in method.emas():
        yield from (ema.online, ema.copy.module)
    # A child without children is a single layer, which is better gathered with the method's own parameters.
    for child in method.children():
        if list(child.children()) and list(child.parameters()):
            yield child


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def reshard(method: nn.Module) -> None:
    """Free full weights that a forward pass without a backward pass has left, as in an evaluation."""
    for module in method.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_shards(values: Tensor, tensor: DTensor) -> Tensor:
    """Sum ``values`` in place over the ranks that hold shards of ``tensor``."""
    dist.all_reduce(values, group=tensor.device_mesh.get_group())
    return values


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gather full copies of tensors of one shape and sharding in one collective; other tensors stay as they are."""
    if not isinstance(tensors[0], DTensor):
        return list(tensors)
    mesh, shape = tensors[0].device_mesh, tensors[0].shape
    rows = -(-shape[0] // mesh.size())  # of the first ranks; later ones may have fewer or none
    parts = torch.stack([_padded(tensor.to_local(), rows) for tensor in tensors])
    full = parts.new_empty(mesh.size(), *parts.shape)
    dist.all_gather(list(full.unbind()), parts, group=mesh.get_group())
    return list(full.transpose(0, 1).flatten(1, 2)[:, : shape[0]].unbind())


def own_rows(full: Tensor, like: Tensor) -> Tensor:
    """Return the rows of a full tensor that this rank holds of ``like``."""
    if not isinstance(like, DTensor):
        return full
    mesh = like.device_mesh
    rows = -(-like.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * rows, like.shape[0])
    return full[start : start + len(like.to_local())]


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


@torch.no_grad()
def full_copy(encoder: ViT, config: TrainerConfig) -> ViT:
    """Gather a sharded encoder into a copy with all its weights, on every rank; called on all of them.

    The copy runs without the other ranks and can be copied and trained, as evaluators do.
    """
    some = next(encoder.parameters())
    with torch.device("meta"):
        copy = BACKBONES.build(encoder.config)
    copy.to_empty(device=some.device)
    tensors = _named_tensors(encoder)
    for name, tensor in _named_tensors(copy).items():
        source = tensors[name]
        tensor.copy_(source.full_tensor() if isinstance(source, DTensor) else source)
    for own, other in zip(copy.parameters(), encoder.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
    set_fused_attention(copy, config.fused_attention)
    return copy.train(encoder.training)


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    both: Iterable[tuple[str, Tensor]] = (*module.named_parameters(), *module.named_buffers())
    return dict(both)
