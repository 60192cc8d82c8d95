"""Multi-block masks: their geometry, their statistics, and how compat mode equals the published sampler."""

import itertools
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_zoo.masks import MASKS, Masks
from ssl_zoo.masks.blocks import BlockSize, independent_sizes, reference_block_size, reference_sizes
from ssl_zoo.masks.multiblock import ContextLength, MultiblockConfig, MultiblockGenerator

GOLDEN = Path(__file__).parent.parent / "golden" / "masks_ijepa.safetensors"
SCALE, ASPECT, CONTEXT_SCALE = [0.15, 0.2], [0.75, 1.5], [0.85, 1.0]
GRIDS = {"ijepa_224_16": (14, 14), "ijepa_224_14": (16, 16), "ijepa_32_4": (8, 8)}
MODES = list(ContextLength)
UNBIASED = [ContextLength.fixed, ContextLength.batch_min]


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def build(grid: tuple[int, int], mode: ContextLength = ContextLength.fixed, **settings) -> MultiblockGenerator:
    return MASKS.build(MultiblockConfig(context_length=mode, **settings), grid)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(generator: MultiblockGenerator, batch_size: int, num_batches: int) -> dict[str, torch.Tensor]:
    """Return the frequency of each patch in the context, in one target and in any target, (batches, N) each."""
    random = seeded(0)
    per_batch: dict[str, list[torch.Tensor]] = {"context": [], "target": [], "target_union": []}
    for _ in range(num_batches):
        masks = generator(batch_size, random)
        empty = torch.zeros(batch_size, generator.num_patches)
        per_batch["context"].append(empty.scatter(1, masks.context.flatten(1), 1.0).mean(0))
        counts = torch.bincount(masks.targets.flatten(), minlength=generator.num_patches)
        per_batch["target"].append(counts / batch_size / masks.targets.shape[1])
        per_batch["target_union"].append(empty.scatter(1, masks.targets.flatten(1), 1.0).mean(0))
    return {key: torch.stack(values) for key, values in per_batch.items()}


def check_valid(masks: Masks, generator: MultiblockGenerator, batch_size: int) -> None:
    config = generator.config
    assert masks.context.shape[:2] == (batch_size, config.num_contexts)
    assert masks.targets.shape[:2] == (batch_size, config.num_targets)
    for indices in (masks.context, masks.targets):
        assert indices.dtype == torch.int64
        assert indices.shape[2] > config.min_patches
        assert indices.min() >= 0
        assert indices.max() < generator.num_patches
        assert (indices.diff(dim=2) > 0).all(), "sorted and without duplicates"
    masked = torch.zeros(batch_size, generator.num_patches, dtype=torch.bool).scatter_(
        1, masks.targets.flatten(1), True
    )
    if not config.allow_overlap and not generator.num_relaxed:
        assert not masked.gather(1, masks.context.flatten(1)).any(), "context and targets are disjoint"


def assert_blocks(indices: torch.Tensor, grid: tuple[int, int]) -> None:
    """Check that every block is a full rectangle."""
    rows, columns = indices // grid[1], indices % grid[1]
    heights = rows.amax(-1) - rows.amin(-1) + 1
    widths = columns.amax(-1) - columns.amin(-1) + 1
    assert (heights * widths == indices.shape[-1]).all()


# Sizes


@pytest.mark.parametrize(
    ("grid", "sizes", "context_sides"),
    [
        ((16, 16), "76 86 76 57 76 86 76 76 76 86 76 67", [15] * 12),
        ((14, 14), "66 75 75 56 65 75 65 65 65 75 65 56", [13] * 12),
        (
            (28, 28),
            "12,11 14,11 13,11 9,12 13,11 14,10 13,11 13,11 13,11 13,11 12,11 10,12",
            [27, 26, 27, 26, 27, 26, 27, 26, 27, 26, 27, 27],
        ),
    ],
)
def test_reference_sizes_of_seeds_0_to_11_are_the_published_codes(grid, sizes, context_sides):
    expected = [tuple(map(int, size.split(",") if "," in size else size)) for size in sizes.split()]
    for seed, (target, side) in enumerate(zip(expected, context_sides, strict=True)):
        generator = seeded(seed)
        assert reference_block_size(generator, grid, SCALE, ASPECT) == target
        assert reference_block_size(generator, grid, CONTEXT_SCALE, [1.0, 1.0]) == (side, side)


@pytest.mark.parametrize("name", GRIDS)
def test_reference_sizes_of_400_batches_equal_the_golden_ones(name):
    for seed, expected in enumerate(golden()[f"{name}.block_sizes"].tolist()):
        generator = seeded(seed)
        target = reference_block_size(generator, GRIDS[name], SCALE, ASPECT)
        context = reference_block_size(generator, GRIDS[name], CONTEXT_SCALE, [1.0, 1.0])
        assert [*target, *context] == expected


@pytest.mark.parametrize("name", GRIDS)
def test_enumerated_reference_sizes_and_probabilities_agree_with_samples(name):
    sampled = golden()[f"{name}.block_sizes"][:, :2].tolist()
    sizes = reference_sizes(GRIDS[name], SCALE, ASPECT).sizes
    assert {BlockSize(*size) for size in sampled} <= sizes.keys()
    for size, probability in sizes.items():
        error = (probability * (1 - probability) / len(sampled)) ** 0.5
        assert sampled.count(list(size)) / len(sampled) == pytest.approx(probability, abs=4 * error + 1e-9)


@pytest.mark.parametrize("grid", [(14, 14), (8, 20), (4, 4)])
def test_independent_sizes_follow_separate_samples_of_scale_and_aspect(grid):
    distribution = independent_sizes(grid, SCALE, ASPECT)
    assert sum(distribution.sizes.values()) == pytest.approx(1)
    scale, aspect = torch.rand(2, 40000, dtype=torch.float64, generator=seeded(0))
    area = (grid[0] * grid[1] * (SCALE[0] + scale * (SCALE[1] - SCALE[0]))).floor()
    aspect = ASPECT[0] + aspect * (ASPECT[1] - ASPECT[0])
    heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    for size, probability in distribution.sizes.items():
        error = (probability * (1 - probability) / len(area)) ** 0.5
        measured = ((heights == size.height) & (widths == size.width)).double().mean().item()
        assert measured == pytest.approx(probability, abs=4.5 * error + 1e-9), size


def test_scale_and_aspect_are_coupled_in_compat_only():
    def area_by_shape(sizes):
        wide = [(size.area, p) for size, p in sizes.items() if size.width > size.height]
        tall = [(size.area, p) for size, p in sizes.items() if size.height > size.width + 1]
        return [sum(area * p for area, p in group) / sum(p for _, p in group) for group in (wide, tall)]

    wide, tall = area_by_shape(reference_sizes((28, 28), SCALE, ASPECT).sizes)
    assert tall - wide > 15
    wide, tall = area_by_shape(independent_sizes((28, 28), SCALE, ASPECT).sizes)
    assert abs(tall - wide) < 5


def test_block_may_span_the_full_grid_and_keeps_its_area_on_a_narrow_one():
    assert list(independent_sizes((5, 7), [1.0, 1.0], [5 / 7, 5 / 7]).sizes) == [(5, 7)]
    assert list(independent_sizes((2, 40), [0.25, 0.25], [1.0, 1.0]).sizes) == [(2, 10)]


# Every mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (12, 20)])
def test_masks_are_valid_and_targets_are_rectangles(mode, grid):
    generator, random = build(grid, mode), seeded(3)
    for batch_size in (1, 5, 64):
        masks = generator(batch_size, random)
        check_valid(masks, generator, batch_size)
        assert_blocks(masks.targets, grid)


@pytest.mark.parametrize("mode", MODES)
def test_masks_are_a_function_of_the_seed_alone(mode):
    first, second = build((14, 14), mode), build((14, 14), mode)
    first(7, seeded(9))
    before = torch.get_rng_state()
    a, b, other = first(32, seeded(1)), second(32, seeded(1)), first(32, seeded(2))
    assert torch.equal(a.context, b.context)
    assert torch.equal(a.targets, b.targets)
    assert not torch.equal(a.targets, other.targets)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"


@pytest.mark.parametrize("mode", MODES)
def test_several_contexts_differ_and_each_avoids_all_targets(mode):
    generator = build((14, 14), mode, num_contexts=3, context_scale=[0.5, 0.6], context_fraction=0.1)
    masks = generator(64, seeded(0))
    check_valid(masks, generator, 64)
    assert not torch.equal(masks.context[:, 0], masks.context[:, 1])


@pytest.mark.parametrize("mode", MODES)
def test_allow_overlap_lets_contexts_contain_targets(mode):
    generator = build((16, 16), mode, allow_overlap=True)
    masks = generator(64, seeded(0))
    check_valid(masks, generator, 64)
    masked = torch.zeros(64, 256, dtype=torch.bool).scatter_(1, masks.targets.flatten(1), True)
    assert masked.gather(1, masks.context[:, 0]).any()
    if mode is ContextLength.compat:
        assert masks.context.shape[2] == 225  # the 15x15 block that the published code gives at 224 pixels, patch 14


# The differences between the modes


@pytest.mark.parametrize("mode", MODES)
def test_last_row_and_column_are_reached_except_in_compat(mode):
    frequency = frequencies(build((16, 16), mode), 128, 60)
    for key in ("context", "target"):
        reached = frequency[key].mean(0).view(16, 16)
        if mode is ContextLength.compat:
            assert reached[-1].sum() == 0
            assert reached[:, -1].sum() == 0
        else:
            assert (reached > 0).all()


@pytest.mark.parametrize("mode", UNBIASED)
@pytest.mark.parametrize("grid", [(16, 16), (12, 20)])
def test_unbiased_frequencies_are_symmetric_under_flips(mode, grid):
    for key, per_batch in frequencies(build(grid, mode), 128, 100).items():
        per_batch = per_batch.view(-1, *grid)
        for axis in (1, 2):
            difference = per_batch - per_batch.flip(axis)
            error = difference.std(0) / len(difference) ** 0.5
            assert (difference.mean(0).abs() <= 5 * error + 1e-9).all(), (key, axis)


def test_context_patches_lie_in_the_top_half_in_compat_only():
    def top_share(mode):
        frequency = frequencies(build((16, 16), mode), 128, 40)["context"].mean(0)
        return (frequency[:128].sum() / frequency.sum()).item()

    assert top_share(ContextLength.compat) == pytest.approx(0.778, abs=0.03)
    assert top_share(ContextLength.batch_min) == pytest.approx(0.5, abs=0.01)
    assert top_share(ContextLength.fixed) == pytest.approx(0.5, abs=0.01)


def test_context_count_falls_with_the_batch_size_except_when_fixed():
    def counts(mode):
        # The generator samples block sizes first: equal seeds compare batches of equal sizes.
        generator = build((16, 16), mode)
        return [
            sum(generator(size, seeded(seed)).context.shape[2] for seed in range(40)) / 40 for size in (1, 32, 128, 256)
        ]

    assert counts(ContextLength.fixed) == [64, 64, 64, 64]
    compat = counts(ContextLength.compat)
    assert compat == pytest.approx([110.1, 76.6, 68.5, 64], abs=10)  # golden means for 1, 32, 128
    for count in (compat, counts(ContextLength.batch_min)):
        assert all(larger - smaller > 1 for larger, smaller in itertools.pairwise(count))


def test_fixed_frequencies_do_not_depend_on_the_batch_size():
    generator = build((14, 14), context_fraction=0.35)
    placed = generator._place_once(4096, *generator._sample_sizes(seeded(0)), seeded(1))
    assert generator._too_small(placed).sum() > 100, "the geometry is tight enough for rejections"
    small, large = frequencies(generator, 4, 500), frequencies(generator, 128, 60)
    for key in small:
        difference = small[key].mean(0) - large[key].mean(0)
        error = (small[key].var(0) / 500 + large[key].var(0) / 60).sqrt()
        assert (difference.abs() < 5 * error).all(), key


def test_fixed_context_is_a_random_subset_of_its_candidates():
    generator = build((6, 6), context_scale=[1.0, 1.0], allow_overlap=True, min_patches=3)  # all patches are candidates
    frequency = frequencies(generator, 1000, 40)["context"].mean(0)
    assert (frequency - 0.25).abs().max() < 5 * (0.25 * 0.75 / 40000) ** 0.5


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("batch_size", "num_batches"), [(1, 600), (32, 100), (128, 60)])
def test_compat_frequencies_equal_the_golden_ones(name, batch_size, num_batches):
    generator = build(GRIDS[name], ContextLength.compat, min_patches=4)
    for key, per_batch in frequencies(generator, batch_size, num_batches).items():
        expected, expected_error = (
            golden()[f"{name}.batch_{batch_size}.{key}_{part}"].flatten() for part in ("prob", "prob_se")
        )
        error = (expected_error**2 + per_batch.var(0) / num_batches).sqrt()
        assert ((per_batch.mean(0) - expected).abs() <= 5 * error).all(), key
    assert generator.num_relaxed == golden()[f"{name}.batch_{batch_size}.relaxed"].item() == 0


def test_compat_without_room_lets_contexts_overlap_and_counts_them(caplog):
    generator = build((8, 8), ContextLength.compat, num_targets=8, target_scale=[0.4, 0.5], min_patches=12)
    masks = generator(256, seeded(0))
    check_valid(masks, generator, 256)
    assert generator.num_relaxed > 0
    assert "contains target patches" in caplog.text


# Impossible geometry


def refused(grid: tuple[int, int], mode: ContextLength = ContextLength.fixed, **settings) -> str:
    start = time.perf_counter()
    with pytest.raises(ValueError) as error:
        build(grid, mode, **settings)
    assert time.perf_counter() - start < 1
    return str(error.value)


@pytest.mark.parametrize(("mode", "least"), [(ContextLength.fixed, 8), (ContextLength.compat, 9)])
def test_8x8_grid_with_the_references_min_patches_is_refused(mode, least):
    message = refused((8, 8), mode)  # the published code never returns from some batches
    for part in ("masks.target_scale=[0.15, 0.2]", "8x8", f"{least}..12", "masks.min_patches=10", "16x16"):
        assert part in message
    assert f"masks.min_patches={least - 1}." in message
    build((8, 8), mode, min_patches=least - 1)


@pytest.mark.parametrize("mode", UNBIASED)
def test_targets_that_leave_no_context_are_refused(mode):
    message = refused((14, 14), mode, target_scale=[0.9, 1.0], num_targets=8)
    for part in (
        "14x14",
        "masks.target_scale=[0.9, 1.0]",
        "masks.num_targets=8",
        "masks.context_scale",
        "allow_overlap",
    ):
        assert part in message


def test_context_fraction_that_placements_rarely_leave_is_refused_with_one_that_works():
    message = refused((14, 14), context_fraction=0.7)
    assert "masks.context_fraction=0.7 requires contexts of 137 patches" in message
    remedy = float(message.split("Use masks.context_fraction=")[1].split(",")[0])
    build((14, 14), context_fraction=remedy)


def test_context_fraction_below_min_patches_is_refused():
    assert "masks.context_fraction=0.04" in refused((14, 14), context_fraction=0.04)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_scale", [0.2, 0.1]),
        ("target_scale", [0.2]),
        ("context_scale", [0.5, 1.5]),
        ("target_aspect", [0.0, 1.0]),
        ("num_targets", 0),
        ("num_contexts", 0),
        ("min_patches", -1),
        ("context_fraction", 0.0),
    ],
)
def test_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"masks.{key}="):
        MultiblockConfig(**{key: value})


def ranges(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    mode=st.sampled_from(MODES),
    target_scale=ranges(0.02, 1.0),
    target_aspect=ranges(0.2, 4.0),
    context_scale=ranges(0.05, 1.0),
    num_targets=st.integers(1, 6),
    num_contexts=st.integers(1, 3),
    min_patches=st.integers(0, 12),
    context_fraction=st.floats(0.02, 1.0),
    allow_overlap=st.booleans(),
)
def test_any_geometry_gives_valid_masks_or_is_refused_at_construction(grid, mode, **settings):
    try:
        generator = build(grid, mode, **settings)
    except ValueError as error:
        assert "masks." in str(error)
        return
    check_valid(generator(33, seeded(0)), generator, 33)
