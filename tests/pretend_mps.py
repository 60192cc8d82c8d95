"""A stand-in for MPS: tensors that report a device of their own, compute on the CPU, and refuse float64 as MPS does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map, tree_map_only

from ssl_zoo import machine

# Operations on tensors of type "mps" need a build of torch for macOS. The type "meta" works everywhere.
DEVICE = torch.device("meta")
_aten = torch.ops.aten
_MOVES = {_aten.copy_.default, _aten._to_copy.default}


class OnDevice(Tensor):
    """A tensor on the device; ``inner`` is a CPU tensor with its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        if inner.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, inner.shape, **place, dtype=inner.dtype, device=DEVICE)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors that are asked for on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class _FromValues(TorchFunctionMode):
    """Makes tensors of Python values on the CPU first; torch makes them without a dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def pretended_mps() -> Iterator[torch.device]:
    """Yield the device, which is there within the block; the library knows that it has no float64."""
    with (
        patch.object(machine, "_WITHOUT_FLOAT64", frozenset({DEVICE.type})),
        patch("torch.optim.adam._device_dtype_check_for_fused", lambda *arguments, **options: None),
        _Factories(),
        _FromValues(),
    ):
        yield DEVICE


def _computed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; the result is on the device that is asked for, or else on that of the inputs."""
    inputs: list[Tensor] = []
    tree_map_only(Tensor, inputs.append, (args, kwargs))
    on_device = any(isinstance(tensor, OnDevice) for tensor in inputs)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif on_device and func not in _MOVES:
        strangers = [tensor for tensor in inputs if not isinstance(tensor, OnDevice) and tensor.ndim]
        assert not strangers, f"{func}: tensors on two devices"
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    if not on_device:
        return result
    result = tree_map(lambda value: OnDevice(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, result)
