"""Cell masks: SimMIM's counts and frequencies, and complete cells."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_zoo.masks import MASKS
from ssl_zoo.masks.cells import CellsConfig, CellsGenerator

GOLDEN = Path(__file__).parent.parent / "golden" / "masks_blocks.safetensors"
GEOMETRY = {"simmim_224_32_16": (14, 2, 120), "simmim_192_32_4": (48, 8, 1408)}  # side, cell, masked


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def build(grid: tuple[int, int], **settings) -> CellsGenerator:
    return MASKS.build(CellsConfig(**settings), grid)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", GEOMETRY)
def test_frequencies_counts_and_neighbours_equal_the_golden_ones(name):
    side, cell, num_masked = GEOMETRY[name]
    generator, random = build((side, side), mask_patch_size=cell), seeded(0)
    num_images = 2000
    masked = torch.cat([generator(500, random).masked for _ in range(num_images // 500)]).view(-1, side, side)
    assert (masked.flatten(1).sum(1) == num_masked).all()
    frequency = masked.double().mean(0)
    error = (golden()[f"{name}.prob_se"] ** 2 + frequency * (1 - frequency) / num_images).sqrt()
    assert ((frequency - golden()[f"{name}.prob"]).abs() < 5 * error).all()
    agreement = torch.stack(
        [
            (masked[:, :, 1:] == masked[:, :, :-1]).double().mean(),
            (masked[:, 1:] == masked[:, :-1]).double().mean(),
        ]
    )
    assert torch.allclose(agreement, golden()[f"{name}.neighbour_agreement"].double(), atol=0.003)


def test_count_is_rounded_up_but_not_by_rounding_errors():
    assert build((10, 10), mask_patch_size=1, mask_ratio=0.55)(1, seeded(0)).targets.shape[2] == 55
    assert build((14, 14), mask_patch_size=2, mask_ratio=0.6)(1, seeded(0)).targets.shape[2] == 30 * 4


def test_cells_that_do_not_divide_the_grid_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"masks.mask_patch_size=4 does not divide the 12x18 grid.*1, 2, 3, 6"):
        build((12, 18), mask_patch_size=4)


def test_grid_of_one_cell_is_refused():
    with pytest.raises(ValueError, match=r"masks.mask_ratio=0.6 masks 1 of 1 cells of 4x4 patches"):
        build((4, 4), mask_patch_size=4)


@pytest.mark.parametrize(("key", "value"), [("mask_patch_size", 0), ("mask_ratio", 1.0)])
def test_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"masks.{key}="):
        CellsConfig(**{key: value})


@settings(max_examples=60, deadline=2000, derandomize=True)
@given(cells=st.tuples(st.integers(1, 6), st.integers(2, 6)), cell=st.integers(1, 4), mask_ratio=st.floats(0.1, 0.6))
def test_cells_are_complete_on_any_grid(cells, cell, mask_ratio):
    rows, columns = cells
    try:
        generator = build((rows * cell, columns * cell), mask_patch_size=cell, mask_ratio=mask_ratio)
    except ValueError as error:
        assert "masks.mask_ratio=" in str(error)
        return
    masks = generator(3, seeded(0))
    masked = masks.masked.view(3, rows, cell, columns, cell).transpose(2, 3).flatten(3)
    assert (masked.all(3) | ~masked.any(3)).all()
    assert masked.all(3).flatten(1).sum(1).eq(masks.targets.shape[2] // cell**2).all()
