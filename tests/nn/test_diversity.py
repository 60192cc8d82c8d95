"""Collapse metrics against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_zoo.nn import cosine_between_images, mean_std, normalized_entropy


def test_the_cosine_is_the_mean_over_all_pairs_of_different_images_at_the_same_patch() -> None:
    tokens, patches = torch.randn(5, 6, 7) + 0.5, torch.randint(4, (5, 6))  # a patch may occur twice in an image
    pairs = [
        F.cosine_similarity(tokens[a, i], tokens[b, j], dim=0)
        for a in range(5)
        for b in range(5)
        for i in range(6)
        for j in range(6)
        if a != b and patches[a, i] == patches[b, j]
    ]
    measured = cosine_between_images(tokens, patches, num_patches=4)
    torch.testing.assert_close(measured, torch.stack(pairs).mean(), atol=1e-6, rtol=1e-5)


def test_cosine_is_one_for_tokens_that_depend_on_their_position_alone() -> None:
    positions = torch.randn(9, 16)
    patches = torch.stack([torch.randperm(9)[:5] for _ in range(8)])
    tokens = positions[patches]
    assert cosine_between_images(tokens, patches, 9).item() == pytest.approx(1, abs=1e-6)
    assert mean_std(tokens) > 0.5


def test_the_cosine_is_unchanged_under_bf16_autocast() -> None:
    tokens, patches = torch.randn(8, 5, 16), torch.randint(9, (8, 5))
    exact = cosine_between_images(tokens, patches, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_between_images(tokens, patches, 9), exact)


def test_the_cosine_is_zero_without_a_common_patch_or_for_zero_tokens() -> None:
    assert cosine_between_images(torch.ones(2, 1, 3), torch.tensor([[0], [1]]), 4) == 0
    assert cosine_between_images(torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.long), 4) == 0


def test_the_std_is_over_tokens_of_all_images_and_no_layer_norm_hides_that_they_are_equal() -> None:
    tokens = torch.randn(3, 4, 8)
    expected = torch.stack([tokens[..., dim].flatten().std() for dim in range(8)]).mean()
    torch.testing.assert_close(mean_std(tokens), expected)
    equal = F.layer_norm(torch.randn(8).expand(3, 4, 8), (8,))
    assert equal.std(dim=-1).mean() > 0.9 and mean_std(equal) < 1e-6


def test_the_entropy_of_a_uniform_distribution_is_one() -> None:
    assert normalized_entropy(torch.full((6, 32), 1 / 32)).item() == pytest.approx(1)
    assert normalized_entropy(torch.eye(32)[:6]) == 0
    halves = torch.tensor([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    assert normalized_entropy(halves).item() == pytest.approx(math.log(2) / 2 / math.log(4))
