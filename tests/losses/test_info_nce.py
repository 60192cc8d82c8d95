"""NT-Xent against its formula."""

import pytest
import torch
import torch.nn.functional as F
from tiny_world import on_ranks
from torch import Tensor

from ssl_zoo.losses.info_nce import cosine_logits, nt_xent_logits
from ssl_zoo.world import World


def loss(first: Tensor, second: Tensor, temperature: float, world: World) -> Tensor:
    return F.cross_entropy(*nt_xent_logits(first, second, temperature, world))


def slow(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Equation 1 of arXiv 2002.05709, averaged over all 2N crops."""
    z, count = torch.cat([first, second]), len(first)
    losses = []
    for i in range(2 * count):
        similarity = F.cosine_similarity(z[i : i + 1], z) / temperature
        others = torch.cat([similarity[:i], similarity[i + 1 :]])
        losses.append(others.exp().sum().log() - similarity[(i + count) % (2 * count)])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_equals_the_papers_for_every_anchor(temperature: float) -> None:
    first, second = torch.randn(2, 5, 7)
    torch.testing.assert_close(loss(first, second, temperature, World()), slow(first, second, temperature))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_have_the_loss_and_the_gradient_of_one_process(ranks: int) -> None:
    views = torch.randn(2, 8, 7)
    alone, split = views.clone().requires_grad_(), views.clone().requires_grad_()
    expected = loss(*alone, 0.2, World())
    expected.backward()
    parts = split.chunk(ranks, dim=1)
    total = torch.stack(on_ranks(ranks, lambda world: loss(*parts[world.rank], 0.2, world))).mean()
    total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(split.grad, alone.grad)


def test_equal_features_of_all_images_cost_the_logarithm_of_the_other_crops() -> None:
    same = torch.ones(4, 3)
    torch.testing.assert_close(loss(same, same, 0.1, World()), torch.tensor(7.0).log())


def test_logits_are_float32_under_autocast() -> None:
    features = torch.randn(16, 8)
    exact = cosine_logits(features, features, 0.025)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_logits(features, features, 0.025), exact)
