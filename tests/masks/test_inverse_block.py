"""Inverse block masks: exact counts, compat's frequencies, and even ones otherwise."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_zoo.masks import MASKS, Pairing
from ssl_zoo.masks.inverse_block import InverseBlockConfig, InverseBlockGenerator

GOLDEN = Path(__file__).parent.parent / "golden" / "masks_blocks.safetensors"
GEOMETRY = {  # side, mask_ratio, surplus_fraction, visible patches
    "inverse_base": (14, 0.8, 0.07, 39),
    "inverse_large": (14, 0.75, 0.1, 49),
    "inverse_huge14": (16, 0.75, 0.1, 64),
}


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def build(grid: tuple[int, int], **settings) -> InverseBlockGenerator:
    return MASKS.build(InverseBlockConfig(**settings), grid)


def reference(name: str, **settings) -> InverseBlockGenerator:
    side, mask_ratio, surplus_fraction, _ = GEOMETRY[name]
    return build((side, side), mask_ratio=mask_ratio, surplus_fraction=surplus_fraction, **settings)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked_patches(generator: InverseBlockGenerator, batch_size: int, random: torch.Generator) -> torch.Tensor:
    """Return one row per mask, True = masked."""
    masks = generator(batch_size, random)
    targets = masks.targets.flatten(0, 1)
    return torch.zeros(len(targets), generator.num_patches, dtype=torch.bool).scatter_(1, targets, True)


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("compat", [True, False])
def test_each_of_16_contexts_has_the_published_count_and_its_own_targets(name, compat):
    side, _, _, num_visible = GEOMETRY[name]
    masks = reference(name, compat=compat)(4, seeded(0))
    assert masks.pairing is Pairing.zip
    assert masks.masked is None, "16 masks per image have no single set of masked patches"
    assert masks.context.shape == (4, 16, num_visible)
    assert masks.targets.shape == (4, 16, side * side - num_visible)
    assert (torch.cat([masks.context, masks.targets], dim=2).sort().values == torch.arange(side * side)).all()


@pytest.mark.parametrize("name", GEOMETRY)
def test_compat_frequencies_and_neighbours_equal_the_golden_ones(name):
    side = GEOMETRY[name][0]
    masked = masked_patches(reference(name, compat=True), 1000, seeded(0)).view(-1, side, side)
    frequency = masked.double().mean(0)
    error = (golden()[f"{name}.prob_se"] ** 2 + frequency * (1 - frequency) / len(masked)).sqrt()
    assert ((frequency - golden()[f"{name}.prob"]).abs() < 5 * error).all()
    agreement = torch.stack(
        [
            (masked[:, :, 1:] == masked[:, :, :-1]).double().mean(),
            (masked[:, 1:] == masked[:, :-1]).double().mean(),
        ]
    )
    assert torch.allclose(agreement, golden()[f"{name}.neighbour_agreement"].double(), atol=0.002)


def test_compat_blocks_cover_37_and_a_half_patches_before_the_count_is_made_exact():
    counts = reference("inverse_base", compat=True).sample_blocks(20000, seeded(0)).sum(1).double()
    assert counts.mean().item() == pytest.approx(37.45, abs=0.1)


@pytest.mark.parametrize("grid", [(14, 14), (9, 16)])
def test_every_patch_is_equally_often_visible_except_in_compat(grid):
    def deviation(compat):
        visible = ~masked_patches(build(grid, compat=compat), 1000, seeded(0))
        expected = int(grid[0] * grid[1] * 0.2) / (grid[0] * grid[1])
        return (visible.double().mean(0) - expected).abs().max().item() / (
            expected * (1 - expected) / len(visible)
        ) ** 0.5

    assert deviation(compat=False) < 5
    assert deviation(compat=True) > 15


def test_visible_patches_are_contiguous():
    masked = masked_patches(build((14, 14)), 200, seeded(0)).view(-1, 14, 14)
    agreement = (masked[:, 1:] == masked[:, :-1]).double().mean().item()
    assert agreement > 0.84, "independent patches agree with probability 0.68"


def test_a_single_mask_per_image_sets_masked():
    masks = build((8, 8), num_masks=1)(6, seeded(0))
    assert torch.equal(masks.masked.nonzero()[:, 1].view(6, 1, -1), masks.targets)


def test_masks_are_a_function_of_the_seed_alone():
    first, second = build((14, 14)), build((14, 14))
    first(3, seeded(9))
    before = torch.get_rng_state()
    assert torch.equal(first(8, seeded(1)).context, second(8, seeded(1)).context)
    assert not torch.equal(first(8, seeded(1)).context, first(8, seeded(2)).context)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"


@pytest.mark.parametrize(
    ("key", "value"), [("mask_ratio", 1.2), ("surplus_fraction", -0.1), ("block_side", 0), ("num_masks", 0)]
)
def test_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"masks.{key}="):
        InverseBlockConfig(**{key: value})


def test_blocks_larger_than_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"masks.block_side=3 exceeds the 2x9 grid; use 2 or less"):
        build((2, 9))


def test_blocks_of_which_none_fits_the_visible_fraction_are_refused():
    with pytest.raises(ValueError, match=r"masks.block_side=3: not one block of 3x3 .* 3 visible of 16 patches"):
        build((4, 4))


@settings(max_examples=80, deadline=2000, derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    mask_ratio=st.floats(0.05, 0.95),
    block_side=st.integers(1, 5),
    num_masks=st.integers(1, 4),
    compat=st.booleans(),
)
def test_any_geometry_gives_complementary_masks_or_is_refused(grid, num_masks, **settings):
    try:
        generator = build(grid, num_masks=num_masks, **settings)
    except ValueError as error:
        assert "masks." in str(error)
        return
    masks = generator(3, seeded(0))
    assert masks.context.shape[:2] == masks.targets.shape[:2] == (3, num_masks)
    everything = torch.cat([masks.context, masks.targets], dim=2).sort().values
    assert (everything == torch.arange(grid[0] * grid[1])).all()
