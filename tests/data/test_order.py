"""The order of samples is an endless stream of shuffled epochs, a function of the position."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.data.order import indices


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 5))
def test_every_epoch_of_the_stream_is_a_permutation(num_samples, batch_size, seed):
    num_steps = -(-3 * num_samples // batch_size)
    stream = torch.cat([indices(seed, step, batch_size, num_samples) for step in range(num_steps)])
    for epoch in stream[: 3 * num_samples].view(3, num_samples):
        assert epoch.sort().values.tolist() == list(range(num_samples))


def test_the_stream_does_not_depend_on_the_batch_size():
    small = torch.cat([indices(7, step, 10, 37) for step in range(12)])
    large = torch.cat([indices(7, step, 60, 37) for step in range(2)])
    assert torch.equal(small, large)


def test_epochs_and_seeds_have_different_orders():
    first, second = indices(0, 0, 50, 50), indices(0, 1, 50, 50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, indices(1, 0, 50, 50))


def test_an_earlier_step_can_be_computed_again():
    forwards = [indices(3, step, 8, 20) for step in range(10)]
    backwards = [indices(3, step, 8, 20) for step in reversed(range(10))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
