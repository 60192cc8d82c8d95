"""SIGReg, VICReg and VISReg against slow restatements of their formulas, one number at a time."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.sigreg import sigreg
from ssl_zoo.losses.vicreg import covariance_loss, covariance_of, invariance_loss, variance_loss
from ssl_zoo.losses.visreg import visreg
from ssl_zoo.seeding import normal_numbers
from ssl_zoo.world import World

WORLD = World()


def samples(count: int = 12, views: int = 2, dim: int = 5, scale: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(count, views, dim, generator=generator) + 0.3).double().requires_grad_()


def directions(dim: int = 5, count: int = 7) -> Tensor:
    return random_directions(torch.tensor(3.0), dim, count).double()


def slow_sigreg(z: Tensor, a: Tensor, most: float, knots: int) -> Tensor:
    """The integral over [-most, most] of complex characteristic functions, by the trapezoidal rule."""
    ts = torch.linspace(-most, most, 2 * knots - 1).double()
    statistics = []
    for view in z.unbind(1):
        for direction in a.unbind(1):
            x = view @ direction
            values = []
            for t in ts:
                difference = torch.exp(1j * t * x).mean() - torch.exp(-t * t / 2)
                values.append(difference.abs() ** 2 * torch.exp(-t * t / 2))
            statistics.append(len(x) * torch.trapezoid(torch.stack(values), ts))
    return torch.stack(statistics).mean()


def test_sigreg_and_its_gradient_equal_a_complex_integral_over_both_signs() -> None:
    z, a = samples(), directions()
    loss = sigreg(z, a, WORLD, max_frequency=3.0, num_knots=17)
    expected = slow_sigreg(z, a, 3.0, 17)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(value, z)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def test_sigreg_is_the_same_when_angles_are_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    z, a = samples(), directions()
    results = []
    for elements in (2**24, 1, 3 * 12 * 2 * 7):
        monkeypatch.setattr("ssl_zoo.losses.sigreg._ELEMENTS_AT_ONCE", elements)
        loss = sigreg(z, a, WORLD, max_frequency=3.0, num_knots=17)
        results.append((loss, *torch.autograd.grad(loss, z)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.4), (0.8, 1.0), (-0.5, 1.7)])
def test_sigreg_of_many_gaussian_numbers_is_the_closed_form(mean: float, std: float) -> None:
    # The N-fold integral of |exp(i m t - s^2 t^2 / 2) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), and the variance of the mean.
    count, a, b = 200_000, std * std, std * std / 2 + 1
    distance = (2 * a + 1) ** -0.5 - 2 * (2 * b) ** -0.5 * math.exp(-mean * mean / (4 * b)) + 3**-0.5
    noise = 1 - (2 * a + 1) ** -0.5
    expected = math.sqrt(2 * math.pi) * (count * distance + noise)
    z = mean + std * normal_numbers(torch.tensor(1), torch.arange(count * 4)).view(count, 1, 4)
    loss = sigreg(z, torch.eye(4), WORLD, max_frequency=6.0, num_knots=33)
    assert loss.item() == pytest.approx(expected, rel=0.02 if distance > 1e-6 else 0.6)


def test_the_expectation_of_sigreg_for_a_gaussian_does_not_depend_on_the_number_of_samples() -> None:
    expected = math.sqrt(2 * math.pi) * (1 - 3**-0.5)  # 1.06
    for count in (8, 64):
        z = normal_numbers(torch.tensor(2), torch.arange(count * 4000)).view(count, 4000, 1)
        loss = sigreg(z, torch.ones(1, 1), WORLD, max_frequency=6.0, num_knots=33)
        assert loss.item() == pytest.approx(expected, rel=0.05)


def test_the_terms_of_vicreg_equal_loops_over_dimensions_and_pairs() -> None:
    z = samples().detach()
    _, views, dim = z.shape
    variance, covariance, invariance = [], [], []
    for view in z.unbind(1):
        variance += [max(0.0, 1 - math.sqrt(float(view[:, d].var()) + 1e-4)) for d in range(dim)]
        pairs = [(d, e) for d in range(dim) for e in range(dim) if d != e]
        squares = [float(torch.cov(view.T)[d, e]) ** 2 for d, e in pairs]
        covariance.append(sum(squares) / dim)
    for image in z:
        invariance += [
            float((image[v] - image[w]).square().mean()) for v in range(views) for w in range(views) if v != w
        ]
    matrix = covariance_of(z, WORLD)
    assert variance_loss(matrix, 1.0).item() == pytest.approx(sum(variance) / len(variance), rel=1e-9)
    assert covariance_loss(matrix).item() == pytest.approx(sum(covariance) / views, rel=1e-9)
    assert invariance_loss(z).item() == pytest.approx(sum(invariance) / len(invariance), rel=1e-9)


def test_the_covariance_of_features_with_a_large_mean_keeps_its_digits() -> None:
    z = samples(64).detach().float()
    torch.testing.assert_close(covariance_of(z + 1000, WORLD), covariance_of(z, WORLD), rtol=1e-2, atol=1e-3)


def test_the_terms_of_visreg_equal_loops_over_views_directions_and_ranks() -> None:
    z, a = samples(), directions()
    center, scale, shape = [], [], []
    for view in z.detach().unbind(1):
        mean, std = view.mean(0), view.std(0, unbiased=False)
        center += [m**2 for m in mean.tolist()]
        scale += [(1 - s) ** 2 for s in std.tolist()]
        for direction in a.unbind(1):
            ordered = sorted((((view - mean) / (std + 1e-4)) @ direction).tolist())
            for rank, value in enumerate(ordered, start=1):
                shape.append((value - NormalDist().inv_cdf(rank / (len(ordered) + 1))) ** 2)
    terms = visreg(z, a, WORLD)
    for got, values in ((terms.center, center), (terms.scale, scale), (terms.shape, shape)):
        assert got.item() == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_visreg_pulls_collapsed_features_apart_where_sigreg_hardly_does() -> None:
    z = (1e-3 * samples(64)).detach().requires_grad_()
    terms = visreg(z, directions(), WORLD)
    [pull] = torch.autograd.grad(terms.scale, z)
    [weak] = torch.autograd.grad(sigreg(z, directions(), WORLD, max_frequency=3.0, num_knots=17) / 64, z)
    spread = z.detach() - z.detach().mean(0)
    assert (pull * spread).sum() < 10 * (weak * spread).sum() < 0  # both against the gradient, VISReg's far stronger


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_gradients_of_identical_features_are_finite(value: float) -> None:
    z = torch.full((8, 2, 5), value, requires_grad=True)
    terms = visreg(z, directions().float(), WORLD)
    covariance = covariance_of(z, WORLD)
    losses = [terms.center, terms.scale, terms.shape, variance_loss(covariance, 1.0), covariance_loss(covariance)]
    losses.append(sigreg(z, directions().float(), WORLD, max_frequency=3.0, num_knots=17))
    assert torch.autograd.grad(sum(losses), z)[0].isfinite().all()


def test_directions_are_unit_vectors_new_in_each_step_and_uniform_on_the_sphere() -> None:
    a, again, other = (random_directions(torch.tensor(float(step)), 6, 5000) for step in (7, 7, 8))
    torch.testing.assert_close(a.norm(dim=0), torch.ones(5000))
    assert torch.equal(a, again) and (a * other).sum(0).abs().mean() < 0.5
    torch.testing.assert_close(a @ a.T / 5000, torch.eye(6) / 6, atol=0.01, rtol=0)
    assert a.mean(1).abs().max() < 0.03
