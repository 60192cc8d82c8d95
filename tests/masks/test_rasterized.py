"""Quadrant masks: the patches of each quadrant, and each quadrant is the context equally often."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.masks import MASKS, Pairing
from ssl_zoo.masks.rasterized import RasterizedConfig


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_quadrants_of_a_4x6_grid_are_those_written_by_hand():
    quadrants = [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
    masks = MASKS.build(RasterizedConfig(), (4, 6))(32, seeded(0))
    assert masks.pairing is Pairing.product
    for context, targets, masked in zip(masks.context, masks.targets, masks.masked, strict=True):
        assert context[0].tolist() in quadrants
        assert targets.tolist() == [quadrant for quadrant in quadrants if quadrant != context[0].tolist()]
        assert masked.nonzero().flatten().tolist() == sorted(targets.flatten().tolist())


def test_every_quadrant_is_the_context_equally_often():
    first = MASKS.build(RasterizedConfig(), (4, 4))(8000, seeded(0)).context[:, 0, 0]
    counts = torch.bincount(first, minlength=16)[[0, 2, 8, 10]]
    assert ((counts - 2000).abs() < 5 * (8000 * 0.25 * 0.75) ** 0.5).all()


@pytest.mark.parametrize("grid", [(7, 8), (8, 7), (1, 1)])
def test_odd_grid_is_refused(grid):
    with pytest.raises(ValueError, match=f"even number of patch rows and columns, the grid is {grid[0]}x{grid[1]}"):
        MASKS.build(RasterizedConfig(), grid)


@settings(max_examples=30, deadline=2000, derandomize=True)
@given(rows=st.integers(1, 10), columns=st.integers(1, 10))
def test_quadrants_cover_every_patch_once(rows, columns):
    masks = MASKS.build(RasterizedConfig(), (2 * rows, 2 * columns))(5, seeded(1))
    everything = torch.cat([masks.context, masks.targets], dim=1).flatten(1).sort().values
    assert (everything == torch.arange(4 * rows * columns)).all()
