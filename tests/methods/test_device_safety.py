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
from no_host_sync import HostSync, NoHostSync
from tiny_methods import PROGRESS, tiny_batch, tiny_method
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.graphs import unreadable_progress
from ssl_zoo.method import METHODS, Method, Step
from ssl_zoo.regularizers import REGULARIZERS, Place

CUDA = torch.device("cuda", 0)


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
