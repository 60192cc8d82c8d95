"""Living bytes, against closed forms and against torch's profiler on a real step."""

import pytest
import torch
from tiny_methods import step_of, tiny_batch, tiny_method
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ssl_zoo.planning.allocation_tracker import ACTIVATIONS, GRADIENTS, WEIGHT_COPIES, Ledger


def test_storages_count_once_while_they_live_and_views_never() -> None:
    with Ledger([]) as ledger:
        kept = torch.ones(1000)
        assert ledger.now[ACTIVATIONS] == 4000
        halves = kept[:500] * 2
        assert ledger.now[ACTIVATIONS] == 6000
        del halves
    assert ledger.now[ACTIVATIONS] == 4000 and ledger.peak[ACTIVATIONS] == 6000


def test_what_autograd_holds_is_alive_until_it_is_differentiated() -> None:
    weight = torch.ones(100, requires_grad=True)
    with Ledger([weight]) as ledger:
        total = (weight * 3).exp().sum()  # the result of exp is saved, what went into it is not
        assert ledger.now[ACTIVATIONS] == 400 + 4
        total.backward()
        assert weight.grad is not None
        ledger.reassign(weight.grad, GRADIENTS)
    assert ledger.now == {ACTIVATIONS: 4, WEIGHT_COPIES: 0, GRADIENTS: 400}  # the sum is held here


def test_converted_weights_are_told_from_converted_activations() -> None:
    layer = nn.Linear(30, 20)
    with Ledger(layer.parameters()) as ledger, torch.autocast("cpu", torch.bfloat16):
        result = layer(torch.ones(5, 30))
        assert ledger.now[WEIGHT_COPIES] == 2 * (30 * 20 + 20)
    assert result.dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["ijepa", "mae"])
def test_the_peak_of_a_real_step_is_that_of_torchs_allocator(name: str) -> None:
    method = tiny_method(name)
    batch = tiny_batch(method, name, num_images=64)
    method(batch, step_of(method)).loss.backward()
    method.zero_grad(set_to_none=True)
    with Ledger([*method.parameters(), *batch.views]) as ledger:
        method(batch, step_of(method)).loss.backward()
    counted = sum(ledger.peak.values())
    method.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        method(batch, step_of(method)).loss.backward()
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for change in changes:
        allocated += change
        peak = max(peak, allocated)
    assert counted == pytest.approx(peak, rel=0.1)
