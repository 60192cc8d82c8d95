"""Cell masks: SimMIM's counts and frequencies, and that cells are whole."""

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
GEOMETRY = {"simmim_224_32_16": (14, 2, 120), "simmim_192_32_4": (48, 8, 1408)}  # side, cell, hidden


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def build(grid: tuple[int, int], **settings) -> CellsGenerator:
    return MASKS.build(CellsConfig(**settings), grid)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", GEOMETRY)
def test_frequencies_counts_and_neighbours_equal_the_golden_ones(name):
    side, cell, num_hidden = GEOMETRY[name]
    generator, random = build((side, side), cell_patches=cell), seeded(0)
    num_images = 2000
    hidden = torch.cat([generator(500, random).hidden for _ in range(num_images // 500)]).view(-1, side, side)
    assert (hidden.flatten(1).sum(1) == num_hidden).all()
    frequency = hidden.double().mean(0)
    error = (golden()[f"{name}.prob_se"] ** 2 + frequency * (1 - frequency) / num_images).sqrt()
    assert ((frequency - golden()[f"{name}.prob"]).abs() < 5 * error).all()
    agreement = torch.stack(
        [
            (hidden[:, :, 1:] == hidden[:, :, :-1]).double().mean(),
            (hidden[:, 1:] == hidden[:, :-1]).double().mean(),
        ]
    )
    assert torch.allclose(agreement, golden()[f"{name}.neighbour_agreement"].double(), atol=0.003)


def test_count_is_rounded_up_but_not_by_rounding_errors():
    assert build((10, 10), cell_patches=1, hidden_fraction=0.55)(1, seeded(0)).targets.shape[2] == 55
    assert build((14, 14), cell_patches=2, hidden_fraction=0.6)(1, seeded(0)).targets.shape[2] == 30 * 4


def test_cells_that_do_not_divide_the_grid_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"masks.cell_patches=4 does not divide the 12x18 grid.*1, 2, 3, 6"):
        build((12, 18), cell_patches=4)


def test_grid_of_one_cell_is_refused():
    with pytest.raises(ValueError, match=r"masks.hidden_fraction=0.6 hides 1 of 1 cells of 4x4 patches"):
        build((4, 4), cell_patches=4)


@pytest.mark.parametrize(("key", "value"), [("cell_patches", 0), ("hidden_fraction", 1.0)])
def test_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=f"masks.{key}="):
        CellsConfig(**{key: value})


@settings(max_examples=60, deadline=2000, derandomize=True)
@given(
    cells=st.tuples(st.integers(1, 6), st.integers(2, 6)), cell=st.integers(1, 4), hidden_fraction=st.floats(0.1, 0.6)
)
def test_cells_are_whole_on_any_grid(cells, cell, hidden_fraction):
    rows, columns = cells
    try:
        generator = build((rows * cell, columns * cell), cell_patches=cell, hidden_fraction=hidden_fraction)
    except ValueError as error:
        assert "masks.hidden_fraction=" in str(error)
        return
    masks = generator(3, seeded(0))
    hidden = masks.hidden.view(3, rows, cell, columns, cell).transpose(2, 3).flatten(3)
    assert (hidden.all(3) | ~hidden.any(3)).all()
    assert hidden.all(3).flatten(1).sum(1).eq(masks.targets.shape[2] // cell**2).all()
