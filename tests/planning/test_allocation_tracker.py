"""Live bytes, against closed forms and against torch's profiler on a real step."""

import pytest
import torch
from tiny_methods import step_of, tiny_batch, tiny_method
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ssl_zoo.planning.allocation_tracker import ACTIVATIONS, GRADIENTS, WEIGHT_COPIES, AllocationTracker


def test_storages_count_once_while_they_are_live_and_views_never() -> None:
    with AllocationTracker([]) as tracker:
        kept = torch.ones(1000)
        assert tracker.live[ACTIVATIONS] == 4000
        halves = kept[:500] * 2
        assert tracker.live[ACTIVATIONS] == 6000
        del halves
    assert tracker.live[ACTIVATIONS] == 4000 and tracker.peak[ACTIVATIONS] == 6000


def test_saved_tensors_are_live_until_the_backward_pass() -> None:
    weight = torch.ones(100, requires_grad=True)
    with AllocationTracker([weight]) as tracker:
        total = (weight * 3).exp().sum()  # the result of exp is saved, its input is not
        assert tracker.live[ACTIVATIONS] == 400 + 4
        total.backward()
        assert weight.grad is not None
        tracker.reassign(weight.grad, GRADIENTS)
    assert tracker.live == {ACTIVATIONS: 4, WEIGHT_COPIES: 0, GRADIENTS: 400}  # the variable total


def test_converted_weights_and_converted_activations_are_different_kinds() -> None:
    layer = nn.Linear(30, 20)
    with AllocationTracker(layer.parameters()) as tracker, torch.autocast("cpu", torch.bfloat16):
        result = layer(torch.ones(5, 30))
        assert tracker.live[WEIGHT_COPIES] == 2 * (30 * 20 + 20)
    assert result.dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["ijepa", "mae"])
def test_the_peak_of_a_real_step_equals_the_profilers(name: str) -> None:
    method = tiny_method(name)
    batch = tiny_batch(method, name, num_images=64)
    method(batch, step_of(method)).loss.backward()
    method.zero_grad(set_to_none=True)
    with AllocationTracker([*method.parameters(), *batch.views.values()]) as tracker:
        method(batch, step_of(method)).loss.backward()
    counted = sum(tracker.peak.values())
    method.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        method(batch, step_of(method)).loss.backward()
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for change in changes:
        allocated += change
        peak = max(peak, allocated)
    assert counted == pytest.approx(peak, rel=0.1)
