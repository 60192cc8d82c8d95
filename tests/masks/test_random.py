"""Random masks: MAE's counts, and that every patch and pair of patches is hidden equally often."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.masks import MASKS
from ssl_zoo.masks.random import RandomConfig, RandomGenerator


def build(grid: tuple[int, int], **settings) -> RandomGenerator:
    return MASKS.build(RandomConfig(**settings), grid)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("grid", "hidden_fraction", "seen"),
    [((14, 14), 0.75, 49), ((16, 16), 0.75, 64), ((8, 8), 0.6, 25), ((10, 10), 0.7, 30), ((3, 7), 0.5, 10)],
)
def test_seen_patches_are_the_rounded_down_rest(grid, hidden_fraction, seen):
    masks = build(grid, hidden_fraction=hidden_fraction)(5, seeded(0))
    assert masks.context.shape == (5, 1, seen)
    assert masks.targets.shape == (5, 1, grid[0] * grid[1] - seen)


def test_each_patch_and_neighbouring_pair_is_hidden_as_often_as_chance_says():
    hidden = torch.cat([build((6, 9))(1000, random).hidden for random in map(seeded, range(20))]).double()
    seen = int(54 * 0.25)
    patch = (54 - seen) / 54
    error = (patch * (1 - patch) / len(hidden)) ** 0.5
    assert ((hidden.mean(0) - patch).abs() < 5 * error).all()
    pair = patch * (53 - seen) / 53
    both = (hidden[:, 1:] * hidden[:, :-1]).mean(0)
    assert ((both - pair).abs() < 5 * (pair * (1 - pair) / len(hidden)) ** 0.5).all()


@pytest.mark.parametrize("hidden_fraction", [0.0, 1.0, -0.5])
def test_fraction_outside_0_to_1_is_refused_by_its_key(hidden_fraction):
    with pytest.raises(ValueError, match=r"masks.hidden_fraction="):
        RandomConfig(hidden_fraction=hidden_fraction)


def test_fraction_that_leaves_nothing_to_see_is_refused_with_the_counts():
    with pytest.raises(ValueError, match=r"masks.hidden_fraction=0.9 hides 4 of 4 patches of the 2x2 grid"):
        build((2, 2), hidden_fraction=0.9)


@settings(max_examples=60, deadline=2000, derandomize=True)
@given(grid=st.tuples(st.integers(1, 20), st.integers(1, 20)), hidden_fraction=st.floats(0.01, 0.99))
def test_any_grid_gives_complementary_masks_or_is_refused(grid, hidden_fraction):
    try:
        generator = build(grid, hidden_fraction=hidden_fraction)
    except ValueError as error:
        assert "masks.hidden_fraction=" in str(error)
        return
    masks = generator(3, seeded(0))
    everything = torch.cat([masks.context, masks.targets], dim=2).sort().values
    assert (everything == torch.arange(grid[0] * grid[1])).all()
