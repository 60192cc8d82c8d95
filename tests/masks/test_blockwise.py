"""Blockwise masks: BEiT's and CAE's statistics in compat, exact counts by default, ragged masks."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_zoo.masks import MASKS
from ssl_zoo.masks.blockwise import BlockwiseConfig, BlockwiseGenerator, Shortfall

GOLDEN = Path(__file__).parent.parent / "golden" / "masks_blocks.safetensors"
NUM_IMAGES = 6000


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def build(grid: tuple[int, int], num_masked: int | None = None, **settings) -> BlockwiseGenerator:
    if num_masked is not None:
        settings["mask_ratio"] = num_masked / (grid[0] * grid[1])
    return MASKS.build(BlockwiseConfig(**settings), grid)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked_patches(generator: BlockwiseGenerator) -> torch.Tensor:
    random = seeded(0)
    return torch.cat([generator(1000, random).masked for _ in range(NUM_IMAGES // 1000)])


def assert_golden_frequencies(masked: torch.Tensor, name: str) -> None:
    expected, expected_error = golden()[f"{name}.prob"].flatten(), golden()[f"{name}.prob_se"].flatten()
    frequency = masked.double().mean(0)
    error = (expected_error**2 + frequency * (1 - frequency) / len(masked)).sqrt()
    assert ((frequency - expected).abs() < 5 * error).all()
    grid = masked.view(-1, 14, 14)
    agreement = torch.stack(
        [(grid[:, :, 1:] == grid[:, :, :-1]).double().mean(), (grid[:, 1:] == grid[:, :-1]).double().mean()]
    )
    assert torch.allclose(agreement, golden()[f"{name}.neighbour_agreement"].double(), atol=0.003)


# The reference codes


@pytest.mark.parametrize("num_masked", [75, 98, 120])
def test_compat_that_keeps_a_shortfall_is_beits_sampler(num_masked):
    masked = masked_patches(build((14, 14), num_masked, shortfall=Shortfall.keep, compat=True))
    assert_golden_frequencies(masked, f"beit_{num_masked}")
    expected = golden()[f"beit_{num_masked}.count_hist"].double()
    share, expected_share = torch.bincount(masked.sum(1), minlength=197) / NUM_IMAGES, expected / expected.sum()
    pooled = (share * NUM_IMAGES + expected) / (NUM_IMAGES + expected.sum())
    error = (pooled * (1 - pooled) * (1 / NUM_IMAGES + 1 / expected.sum())).sqrt()
    common = expected >= 20
    assert ((share - expected_share).abs() < 5 * error)[common].all()
    assert share[~common].sum() < 0.01


def test_compat_that_retries_is_caes_sampler():
    masked = masked_patches(build((14, 14), 98, shortfall=Shortfall.retry, compat=True))
    assert (masked.sum(1) == 98).all()
    assert_golden_frequencies(masked, "cae_98")


def test_block_spans_the_grid_except_in_compat():
    # Only blocks of a full row or column have this area and aspect.
    settings = {"num_masked": 8, "min_block_area": 8, "block_aspect": [7.9, 8.0]}
    masked = build((8, 8), **settings)(200, seeded(0)).masked.view(-1, 8, 8)
    assert masked.all(1).any(1).all()
    with pytest.raises(ValueError, match=r"^0.0% of the blocks fit the 8x8 grid"):
        build((8, 8), **settings, compat=True)


# Counts


@pytest.mark.parametrize("shortfall", [Shortfall.fill, Shortfall.retry])
@pytest.mark.parametrize(("grid", "num_masked"), [((14, 14), 120), ((14, 14), 75), ((8, 8), 39), ((10, 18), 100)])
def test_exact_masks_have_equal_counts_and_partition_the_grid(grid, num_masked, shortfall):
    masks = build(grid, num_masked, shortfall=shortfall)(300, seeded(0))
    assert (masks.masked.sum(1) == num_masked).all()
    assert masks.targets.shape == (300, 1, num_masked)
    everything = torch.cat([masks.context, masks.targets], dim=2).sort().values
    assert (everything == torch.arange(grid[0] * grid[1])).all()
    assert torch.zeros_like(masks.masked).scatter_(1, masks.targets[:, 0], True).equal(masks.masked)


def test_filling_adds_few_single_patches():
    generator = build((14, 14), 120)
    missing = 120 - generator.place_blocks(2000, seeded(0)).sum(1)
    assert missing.min() == 0
    assert 0.2 < missing.double().mean() < 0.8


def test_default_masks_data2vecs_120_of_196_patches():
    assert build((14, 14))(2, seeded(0)).targets.shape[2] == 120


def test_ragged_masks_cut_context_and_targets_to_the_smallest_image():
    masks = build((14, 14), 120, shortfall=Shortfall.keep)(256, seeded(0))
    counts = masks.masked.sum(1)
    assert counts.min() < counts.max() == 120
    assert masks.targets.shape == (256, 1, counts.min())
    assert masks.context.shape == (256, 1, 196 - 120)
    assert masks.masked.gather(1, masks.targets[:, 0]).all(), "every target is masked"
    assert not masks.masked.gather(1, masks.context[:, 0]).any(), "no context patch is masked"
    for indices in (masks.context, masks.targets):
        assert (indices.diff(dim=2) > 0).all(), "sorted and without duplicates"


def test_ragged_targets_are_cut_at_random_places():
    random, generator = seeded(0), build((14, 14), 75, shortfall=Shortfall.keep)
    dropped, present = torch.zeros(2), torch.zeros(2)
    for _ in range(40):
        masks = generator(256, random)
        missing = masks.masked.scatter(1, masks.targets[:, 0], False)
        dropped += missing.view(-1, 2, 98).sum((0, 2))
        present += masks.masked.view(-1, 2, 98).sum((0, 2))
    top, bottom = (dropped / present).tolist()
    assert top == pytest.approx(bottom, rel=0.1)


# Randomness


@pytest.mark.parametrize("shortfall", Shortfall)
def test_masks_are_a_function_of_the_seed_alone(shortfall):
    first, second = build((14, 14), shortfall=shortfall), build((14, 14), shortfall=shortfall)
    first(7, seeded(9))
    before = torch.get_rng_state()
    a, b, other = first(32, seeded(1)), second(32, seeded(1)), first(32, seeded(2))
    assert torch.equal(a.masked, b.masked)
    assert torch.equal(a.targets, b.targets)
    assert not torch.equal(a.masked, other.masked)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"


@pytest.mark.parametrize("grid", [(14, 14), (10, 18)])
def test_frequencies_are_symmetric_under_flips_and_reach_every_patch(grid):
    frequency = masked_patches(build(grid)).double().mean(0).view(grid)
    assert (frequency > 0).all()
    error = (2 * frequency * (1 - frequency) / NUM_IMAGES).sqrt()
    for axis in (0, 1):
        assert ((frequency - frequency.flip(axis)).abs() < 5 * error).all()


# Impossible geometry


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask_ratio", 0.0),
        ("min_block_area", 0),
        ("max_block_area", 15),
        ("block_aspect", [0.5]),
        ("block_aspect", [2.0, 1.0]),
    ],
)
def test_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"masks.{key}="):
        BlockwiseConfig(**{key: value})


def test_least_block_above_the_masked_number_is_refused_with_one_that_works():
    with pytest.raises(ValueError, match=r"masks.min_block_area=16 exceeds the 9 patches .* use 9 or less"):
        build((4, 4))
    build((4, 4), min_block_area=9)


def test_blocks_that_fit_no_narrow_grid_are_refused():
    with pytest.raises(ValueError, match=r"0.0% of the blocks fit the 1x40 grid with masks.min_block_area=16"):
        build((1, 40))


@settings(max_examples=100, deadline=4000, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    mask_ratio=st.floats(0.05, 0.95),
    min_block_area=st.integers(1, 20),
    larger=st.one_of(st.none(), st.integers(0, 40)),
    low=st.floats(0.1, 3.0),
    widening=st.floats(1.0, 8.0),
    shortfall=st.sampled_from(Shortfall),
    compat=st.booleans(),
)
def test_any_geometry_gives_valid_masks_or_is_refused(grid, larger, low, widening, **settings):
    settings["max_block_area"] = None if larger is None else settings["min_block_area"] + larger
    try:
        generator = build(grid, block_aspect=[low, low * widening], **settings)
    except ValueError as error:
        assert "masks." in str(error)
        return
    masks = generator(20, seeded(0))
    counts, goal = masks.masked.sum(1), int(grid[0] * grid[1] * settings["mask_ratio"] + 1e-9)
    assert counts.max() <= goal
    assert counts.min() > 0
    if settings["shortfall"] is not Shortfall.keep:
        assert counts.min() == goal
    assert masks.masked.gather(1, masks.targets[:, 0]).all()
    assert not masks.masked.gather(1, masks.context[:, 0]).any()
