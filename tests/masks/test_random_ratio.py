"""iBOT's masks: the reference's statistics, and the largest ratio."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_zoo.masks import MASKS
from ssl_zoo.masks.random_ratio import RandomRatioConfig, RandomRatioGenerator

GOLDEN = Path(__file__).parent.parent / "golden" / "masks_ibot.safetensors"
NUM_IMAGES = 8000


def build(grid: tuple[int, int] = (14, 14), **settings: object) -> RandomRatioGenerator:
    return MASKS.build(RandomRatioConfig(**settings), grid)


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ibot_published", {}), ("ibot_default", {"mask_ratio": [0.3, 0.3], "unmasked": 0.0})],
)
def test_frequencies_numbers_and_shapes_are_the_references(name: str, settings: dict) -> None:
    masked = build(**settings)(NUM_IMAGES, torch.Generator().manual_seed(0)).masked
    expected, expected_error = golden()[f"{name}.prob"].flatten(), golden()[f"{name}.prob_se"].flatten()
    frequency = masked.double().mean(0)
    error = (expected_error**2 + frequency * (1 - frequency) / NUM_IMAGES).sqrt()
    assert ((frequency - expected).abs() < 5 * error).all()
    counts, histogram = masked.sum(1), golden()[f"{name}.count_hist"].double()
    share = torch.bincount(counts, minlength=197).double() / NUM_IMAGES
    # Kolmogorov-Smirnov at the one-in-a-thousand level.
    distance = (share.cumsum(0) - (histogram / histogram.sum()).cumsum(0)).abs().max()
    assert distance < 1.95 * (1 / NUM_IMAGES + 1 / histogram.sum()) ** 0.5
    grid = masked.view(-1, 14, 14)
    pairs = (grid[:, :, 1:] == grid[:, :, :-1], grid[:, 1:] == grid[:, :-1])
    agreement = torch.stack([pair.double().mean() for pair in pairs])
    assert torch.allclose(agreement, golden()[f"{name}.neighbour_agreement"].double(), atol=0.004)


def test_no_image_exceeds_the_largest_ratio() -> None:
    generator = build((8, 8), mask_ratio=[0.2, 0.4], unmasked=0.25)
    masks = generator(2000, torch.Generator().manual_seed(0))
    counts = masks.masked.sum(1)
    assert counts.max() <= 0.4 * 64
    assert (counts == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert masks.context.shape == masks.targets.shape == (2000, 1, 0)


def test_masks_are_a_function_of_the_generators_seed() -> None:
    first, again, other = (build()(8, torch.Generator().manual_seed(seed)).masked for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": [0.5, 0.1]}, "masks.mask_ratio=[0.5, 0.1]"),
        ({"mask_ratio": [0.1, 1.0]}, "masks.mask_ratio=[0.1, 1.0]"),
        ({"unmasked": 1.5}, "masks.unmasked=1.5"),
        ({"min_block_area": 0}, "masks.min_block_area=0"),
        ({"block_aspect": [2.0, 1.0]}, "masks.block_aspect=[2.0, 1.0]"),
        ({"min_block_area": 150}, "of the blocks fit the 14x14 grid"),
    ],
)
def test_invalid_settings_name_their_keys(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**settings)
