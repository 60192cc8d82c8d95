"""A mode in which operations on fake CUDA tensors that would make the host wait for the device raise an error."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
VALUE_READS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.item.default}
VALUE_SHAPES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class HostSync(Exception):
    """An operation that makes the host wait for the device."""


class NoHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        on_device = [t for t in _tensors((*args, *(kwargs or {}).values())) if t.device.type == "cuda"]
        if on_device and func in VALUE_READS | VALUE_SHAPES:
            raise HostSync(str(func))
        if func in INDEXING and any(t.dtype is torch.bool for t in _tensors(args[1:2])):
            raise HostSync(f"{func} with a bool mask")
        result = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default:
            _check_copy(args[0], result, (kwargs or {}).get("non_blocking", False))
        elif func is aten.copy_.default:
            _check_copy(args[1], args[0], (kwargs or {}).get("non_blocking", False) or args[2:] == (True,))
        return result


def _check_copy(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    kinds = source.device.type, target.device.type
    if kinds == ("cuda", "cpu") or (kinds == ("cpu", "cuda") and not non_blocking):
        raise HostSync(f"a blocking copy from {kinds[0]} to {kinds[1]}")


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
