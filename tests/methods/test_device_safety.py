"""Every method's forward pass as it would run on a GPU, without one: fake CUDA tensors tell devices, types and syncs.

What a step may not do there: read a value on the host, or make a shape that depends on values. Either stops the stream,
and neither can be captured in a CUDA graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_methods import PROGRESS, tiny_batch, tiny_method
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.graphs import unreadable_progress
from ssl_zoo.method import METHODS, Method, Step
from ssl_zoo.regularizers import REGULARIZERS, Place

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
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


@contextmanager
def fake_gpu(name: str, **options: Any) -> Iterator[tuple[Method, Batch, Step]]:
    """A method, its batch and a step on a device that is not there; the step as a CUDA graph is captured with."""
    method = tiny_method(name, **options)
    batch = tiny_batch(method, name)
    method.to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = batch.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA))
        step = Step.of(method, PROGRESS, CUDA)
        yield method.to_empty(device=CUDA), fake, replace(step, progress=unreadable_progress(method))


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    """bf16 autocast on CUDA; ``torch.autocast`` itself refuses where there is no such device."""
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", dtype)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", METHODS.names())
def test_forward_on_cuda_keeps_devices_and_types_and_never_waits_for_the_device(name: str, bf16: bool) -> None:
    with fake_gpu(name) as (method, batch, step):
        with NoHostSync(), autocast(bf16):
            image = next(iter(batch.views.values()))
            assert method.encoder.patch_embed(image).dtype is (torch.bfloat16 if bf16 else torch.float32)
            output = method(batch, step)
        assert output.loss.device == CUDA and output.loss.dtype is torch.float32 and output.loss.shape == ()
        assert output.loss.requires_grad
        for key, value in output.metrics.items():
            assert value.device == CUDA and value.shape == () and not value.requires_grad, key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dino", {"sinkhorn_iterations": 3, "koleo_weight": 0.1}),
        ("ibot", {"sinkhorn_iterations": 3, "koleo_weight": 0.1}),
        ("msn", {"sinkhorn_iterations": 3, "head_batch_norm": False}),
    ],
)
def test_options_that_balance_or_spread_never_wait_for_the_device(name: str, options: dict) -> None:
    with fake_gpu(name, **options) as (method, batch, step), NoHostSync():
        assert method(batch, step).loss.device == CUDA


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("name", REGULARIZERS.names())
def test_regularizers_online_targets_and_options_of_ijepa_stay_in_float32_and_never_wait_for_the_device(
    name: str, place: Place
) -> None:
    options = {"position_noise_std": 0.25, "context_loss_weight": 0.5, "target_overrides": {"name": "online"}}
    regularizer = REGULARIZERS.config_of(name)(apply_to=place)
    with fake_gpu("ijepa", regularizer=regularizer, **options) as (method, batch, step):
        with NoHostSync(), autocast(True):
            losses = method(batch, step).losses
        assert len(losses) >= 3
        assert all(term.device == CUDA and term.dtype is torch.float32 for term in losses.values())


@pytest.mark.parametrize("name", METHODS.names())
def test_ema_and_after_step_on_cuda_never_wait_for_the_device(name: str) -> None:
    with fake_gpu(name) as (method, batch, step), NoHostSync():
        statistics = method(batch, step).statistics
        method.loss_weight(batch)
        method.after_backward(replace(step, progress=PROGRESS))
        for ema in method.emas():
            ema.update(PROGRESS.fraction)
        method.after_step(replace(step, progress=PROGRESS), statistics)


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 0)[x > 0].sum(),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: x.unique(),
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_what_waits_for_the_device_is_found(sync: Callable[[Tensor], Any]) -> None:
    with FakeTensorMode():
        x = torch.empty(3, device=CUDA)
        with NoHostSync(), pytest.raises(HostSync):
            sync(x)
