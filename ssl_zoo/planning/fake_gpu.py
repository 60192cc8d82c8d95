"""A fake CUDA device: steps run on it with shapes, dtypes and storages, but compute no values."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.cuda.amp.common
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_META, _CUDA = torch.device("meta"), torch.device("cuda", 0)
_aten = torch.ops.aten


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Yield a device on which every tensor that is made inside is fake.

    Autocast and attention choose the dtypes and kernels of a GPU with bf16 matmuls (Ampere or later). Forward and
    backward passes run under ``WithoutDriver``.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # Without a device both refuse, and torch.autocast would switch itself off with a warning.
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True))
        # It asks the driver for the kernel and falls back to plain matmuls without one.
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
        yield _CUDA


class WithoutDriver(TorchDispatchMode):
    """Lets autograd record and differentiate operations on fake tensors without a driver.

    Autograd asks for the device of every result, by the operation ``prim.device``, and looks up its streams, which
    needs a driver unless the answer is "meta". Autocast asks for the device of its inputs by the same operation and
    must get the true one, or it would convert nothing. Only autograd asks for a result right after the operation,
    before the result requires a gradient.

    Args:
        parameters: differentiated later; the nodes that accumulate their gradients are created here.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._is_hidden = True  # answer "meta" always
        self._fresh: list[Tensor] = []
        self._accumulators: list[object] = []
        with self:
            self._accumulators = [parameter.view_as(parameter).grad_fn for parameter in parameters]
        self._is_hidden = False

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, within this mode."""
        self._is_hidden = True
        loss.backward()
        self._is_hidden = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:
            is_fresh = any(args[0] is tensor for tensor in self._fresh)
            return _META if is_fresh or self._is_hidden_now() else func(*args)
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == _META:  # a derivative formula that makes a tensor on the device of another one
            kwargs["device"] = _CUDA
        result = func(*args, **kwargs)
        is_recorded = torch.is_grad_enabled() and func is not _aten.detach.default
        if is_recorded and any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves((args, kwargs))):
            self._fresh = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        else:
            self._fresh = []
        return result

    def _is_hidden_now(self) -> bool:
        # Checkpointed blocks run forward again within the backward pass, with autocast, which needs the true device.
        return self._is_hidden and not (torch.is_grad_enabled() and self._accumulators)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The kernel that torch chooses on CUDA: flash attention for bf16 without a bias, else the memory-efficient one."""
    if attn_mask is None and query.dtype is torch.bfloat16:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, False)[0]
    needs_grad = torch.is_grad_enabled()
    return _aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, needs_grad, dropout_p, False)[0]
