"""KoLeo against its formula."""

import torch
import torch.nn.functional as F
from tiny_world import on_ranks

from ssl_zoo.losses.koleo import koleo
from ssl_zoo.world import World


def test_the_loss_is_the_mean_logarithm_of_distances_to_nearest_neighbours() -> None:
    features = torch.randn(6, 5)
    units = F.normalize(features, dim=-1)
    distances = [min((units[i] - units[j]).norm() for j in range(6) if j != i) for i in range(6)]
    torch.testing.assert_close(koleo(features, World()), -torch.stack(distances).log().mean())


def test_two_equal_images_and_an_image_alone_have_a_finite_loss_and_gradient() -> None:
    for features in (torch.ones(2, 5), torch.ones(1, 5)):
        features.requires_grad_()
        loss = koleo(features, World())
        loss.backward()
        assert loss.isfinite() and features.grad.isfinite().all()


def test_ranks_together_have_the_loss_and_the_gradient_of_one_process() -> None:
    features = torch.randn(8, 5)
    alone, split = features.clone().requires_grad_(), features.clone().requires_grad_()
    expected = koleo(alone, World())
    expected.backward()
    total = torch.stack(on_ranks(2, lambda world: koleo(split.chunk(2)[world.rank], world))).mean()
    total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(split.grad, alone.grad)
