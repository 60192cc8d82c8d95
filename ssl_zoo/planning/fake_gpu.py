"""A CUDA device that need not be there: steps run on it with shapes, number formats and storages, without numbers."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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
    """Tensors made inside on the device that is yielded are fake.

    Autocast and attention take the formats and kernels that they take on a GPU which multiplies bf16 (Ampere or later).
    Forward and backward passes run under ``WithoutDriver``.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # Without a device both refuse, and torch.autocast would switch itself off with a warning.
        stack.enter_context(_replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(_replaced(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True))
        # It asks the driver for the kernel and takes plain products without one.
        stack.enter_context(_replaced(F, "scaled_dot_product_attention", _attention))
        yield _CUDA


class WithoutDriver(TorchDispatchMode):
    """Lets autograd record and differentiate operations on fake tensors although there is no driver.

    Autograd notes the device of every result, by the operation ``prim.device``, and looks for streams of it, which
    takes a driver; a result that is noted as "meta" needs none. Autocast asks the same of its inputs and must hear the
    truth, or it would convert nothing. Results are asked for before they require a gradient, and at once.

    Args:
        parameters: to be differentiated; the nodes that accumulate their gradients are made here.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._is_hidden = True  # "meta" whoever asks
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
        if kwargs.get("device") == _META:  # a formula that makes a tensor where another one is
            kwargs["device"] = _CUDA
        result = func(*args, **kwargs)
        is_recorded = torch.is_grad_enabled() and func is not _aten.detach.default
        if is_recorded and any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves((args, kwargs))):
            self._fresh = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        else:
            self._fresh = []
        return result

    def _is_hidden_now(self) -> bool:
        # Blocks that run a second time within the backward pass record, hence need the difference again.
        return self._is_hidden and not (torch.is_grad_enabled() and self._accumulators)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """What torch takes on CUDA: flash attention for half precision without a bias, else the memory-efficient kernel."""
    if attn_mask is None and query.dtype is torch.bfloat16:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, False)[0]
    needs_grad = torch.is_grad_enabled()
    return _aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, needs_grad, dropout_p, False)[0]


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
