"""Numbers that are a function of counters."""

import torch

from ssl_zoo.seeding import _mixed, normal_numbers


def split_mix_64(state: int) -> int:
    """The published recurrence, in unsigned arithmetic."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_signed_arithmetic_gives_the_bits_of_split_mix_64() -> None:
    states = [0, 1, 5, 2**40 + 3, 2**63 - 1, 2**63 + 7]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [value % 2**64 for value in _mixed(signed).tolist()] == [split_mix_64(s) for s in states]


def test_the_numbers_have_the_moments_of_a_standard_normal_distribution() -> None:
    x = normal_numbers(torch.tensor(3), torch.arange(400_000)).double()
    assert x.isfinite().all()
    moments = torch.stack([x.mean(), x.square().mean(), x.pow(3).mean(), x.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1, 0, 3]).double(), atol=0.03, rtol=0)


def test_numbers_of_other_counters_are_unrelated() -> None:
    place = torch.arange(100_000)
    first, next_step, swapped = (
        normal_numbers(*c) for c in ((torch.tensor(1), place), (torch.tensor(2), place), (place, torch.tensor(1)))
    )
    for other in (next_step, swapped, first.roll(1)):
        assert torch.corrcoef(torch.stack([first, other]))[0, 1].abs() < 0.02


def test_a_number_depends_on_its_own_counters_alone() -> None:
    image, place = torch.tensor([7, 3, 9])[:, None], torch.arange(5)
    together = normal_numbers(torch.tensor(1.0), image, place)
    assert torch.equal(together[1:2], normal_numbers(torch.tensor(1), image[1:2], place))
    assert torch.equal(together[:, 2:], normal_numbers(torch.tensor(1), image, place[2:]))
