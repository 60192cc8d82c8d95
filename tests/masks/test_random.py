"""Random masks: MAE's counts, and that every patch and pair of patches is masked equally often."""

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
    ("grid", "mask_ratio", "visible"),
    [((14, 14), 0.75, 49), ((16, 16), 0.75, 64), ((8, 8), 0.6, 25), ((10, 10), 0.7, 30), ((3, 7), 0.5, 10)],
)
def test_number_of_visible_patches_is_rounded_down(grid, mask_ratio, visible):
    masks = build(grid, mask_ratio=mask_ratio)(5, seeded(0))
    assert masks.context.shape == (5, 1, visible)
    assert masks.targets.shape == (5, 1, grid[0] * grid[1] - visible)


def test_each_patch_and_neighbouring_pair_is_masked_with_the_expected_frequency():
    masked = torch.cat([build((6, 9))(1000, random).masked for random in map(seeded, range(20))]).double()
    visible = int(54 * 0.25)
    patch = (54 - visible) / 54
    error = (patch * (1 - patch) / len(masked)) ** 0.5
    assert ((masked.mean(0) - patch).abs() < 5 * error).all()
    pair = patch * (53 - visible) / 53
    both = (masked[:, 1:] * masked[:, :-1]).mean(0)
    assert ((both - pair).abs() < 5 * (pair * (1 - pair) / len(masked)) ** 0.5).all()


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.5])
def test_ratio_outside_0_to_1_is_refused_by_its_key(mask_ratio):
    with pytest.raises(ValueError, match=r"masks.mask_ratio="):
        RandomConfig(mask_ratio=mask_ratio)


def test_ratio_that_leaves_no_patch_visible_is_refused_with_the_counts():
    with pytest.raises(ValueError, match=r"masks.mask_ratio=0.9 masks 4 of 4 patches of the 2x2 grid"):
        build((2, 2), mask_ratio=0.9)


@settings(max_examples=60, deadline=2000, derandomize=True)
@given(grid=st.tuples(st.integers(1, 20), st.integers(1, 20)), mask_ratio=st.floats(0.01, 0.99))
def test_any_grid_gives_complementary_masks_or_is_refused(grid, mask_ratio):
    try:
        generator = build(grid, mask_ratio=mask_ratio)
    except ValueError as error:
        assert "masks.mask_ratio=" in str(error)
        return
    masks = generator(3, seeded(0))
    everything = torch.cat([masks.context, masks.targets], dim=2).sort().values
    assert (everything == torch.arange(grid[0] * grid[1])).all()
