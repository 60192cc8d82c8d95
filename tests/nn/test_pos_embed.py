import math

import pytest
import torch

from ssl_zoo.nn import SincosLayout, interpolate_positions, sincos_positions


def test_published_value_of_the_token_right_of_the_first() -> None:
    token = sincos_positions((3, 5), 8)[0, 1]
    expected = torch.tensor([math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01), 0, 0, 1, 1])
    torch.testing.assert_close(token, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("layout", list(SincosLayout))
def test_every_entry_on_a_non_square_grid_equals_the_formula(layout: SincosLayout) -> None:
    grid, dim = (3, 5), 12
    table = sincos_positions(grid, dim, layout)[0]
    assert table.dtype == torch.float32
    for row in range(grid[0]):
        for col in range(grid[1]):
            first, second = (col, row) if layout is SincosLayout.col_first else (row, col)
            waves = [1 / 10_000 ** (i / 3) for i in range(3)]
            halves = [[f(at * w) for f in (math.sin, math.cos) for w in waves] for at in (first, second)]
            expected = torch.tensor(halves[0] + halves[1])
            torch.testing.assert_close(table[row * grid[1] + col], expected, rtol=0, atol=1e-6)


def test_large_coordinates_are_as_exact_as_float64() -> None:
    last = sincos_positions((1, 2000), 8)[0, -1, 0].double()
    assert abs(last.item() - math.sin(1999)) < 6e-8


def test_layouts_differ_by_a_swap_of_the_halves() -> None:
    by_col, by_row = (sincos_positions((4, 7), 16, layout) for layout in SincosLayout)
    assert torch.equal(torch.cat(by_col.chunk(2, -1)[::-1], -1), by_row)
    assert not torch.equal(by_col, by_row)


def test_rows_of_prefix_tokens_are_zero_and_come_first() -> None:
    table = sincos_positions((2, 3), 8, num_prefix=2)
    assert table.shape == (1, 8, 8)
    assert table[0, :2].abs().max() == 0
    assert torch.equal(table[:, 2:], sincos_positions((2, 3), 8))


def test_width_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of 4, got 50; try 48 or 52"):
        sincos_positions((2, 2), 50)


def test_interpolation_at_the_native_grid_changes_nothing() -> None:
    table = torch.randn(1, 1 + 12, 8)
    assert torch.equal(interpolate_positions(table, (3, 4), (3, 4), num_prefix=1), table)


def test_interpolation_keeps_prefix_rows_and_row_major_order() -> None:
    rows, cols = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    patches = torch.stack([rows, cols], dim=-1).flatten(0, 1)
    table = torch.cat([torch.tensor([[7.0, -7.0]]), patches])[None]
    resized = interpolate_positions(table, (8, 6), (16, 3), num_prefix=1)
    assert resized.shape == (1, 1 + 16 * 3, 2)
    assert resized[0, 0].tolist() == [7.0, -7.0]
    grid = resized[0, 1:].unflatten(0, (16, 3))
    # Away from the borders the value at a cell's centre is the source's coordinate there, up to the kernel's error.
    inner = torch.arange(4.0, 12.0)
    torch.testing.assert_close(grid[4:12, 1, 0], (inner + 0.5) * 8 / 16 - 0.5, rtol=0, atol=0.05)
    torch.testing.assert_close(grid[3, 1, 1], torch.tensor((1 + 0.5) * 6 / 3 - 0.5), rtol=0, atol=1e-5)
    assert grid[..., 0].std(dim=1).max() < 1e-5  # a row has one row coordinate
    assert grid[..., 1].std(dim=0).max() < 1e-5


def test_interpolation_to_a_grid_with_equally_many_patches_still_interpolates() -> None:
    table = torch.randn(1, 12, 4)
    resized = interpolate_positions(table, (3, 4), (4, 3))
    assert resized.shape == table.shape
    assert not torch.allclose(resized, table)


def test_an_offset_shifts_the_sampling_points() -> None:
    rows = torch.arange(8.0)[:, None, None].expand(8, 8, 1).reshape(1, 64, 1)
    plain, shifted = (interpolate_positions(rows, (8, 8), (4, 4), offset=offset)[0, ::4, 0] for offset in (0.0, 0.1))
    assert plain[1].item() == pytest.approx(2.5) and plain[2].item() == pytest.approx(4.5)
    # Row i reads (i + 0.5) / (4.1 / 8) - 0.5.
    # A cubic is a straight line half way between two places only; the offset moves them by 0.07 and 0.12.
    assert [shifted[i].item() for i in (1, 2)] == pytest.approx([(i + 0.5) * 8 / 4.1 - 0.5 for i in (1, 2)], abs=0.03)
