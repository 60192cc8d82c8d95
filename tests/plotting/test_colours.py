"""Colours as a function of features, similarities and masks."""

import torch

from ssl_zoo.plotting import PrincipalColours, on_grey, patch_colours, patch_set, similarity_colours
from ssl_zoo.seeding import generator_for


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator_for("plotting", seed))


def test_patches_that_are_not_shown_are_grey() -> None:
    images = torch.rand(1, 3, 4, 12, generator=generator_for("images"))
    shown = on_grey(images, patch_set(torch.tensor([[0, 5]]), 6), (2, 3))
    visible = torch.zeros(4, 12, dtype=torch.bool)
    visible[:2, :4] = True
    visible[2:, 8:] = True
    assert torch.equal(shown[0], torch.where(visible, images[0], 0.5))


def test_each_patch_has_its_colour() -> None:
    colours = torch.rand(1, 6, 3, generator=generator_for("colours"))
    figure = patch_colours(colours, (2, 3), (4, 12))
    assert torch.equal(figure[0, :, 3, 11], colours[0, 5]) and torch.equal(figure[0, :, 0, 4], colours[0, 1])


def test_similarity_runs_from_dark_blue_to_yellow() -> None:
    low, zero, one = similarity_colours(torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(low, zero) and zero[2] > zero[0] and one[:2].min() > 0.9 > 0.2 > one[2]


def test_principal_colours_are_the_components_that_an_svd_gives() -> None:
    flat = features(200, 8) * torch.arange(8, 0, -1)
    colours = PrincipalColours.of(flat.unflatten(0, (10, 20)))
    _, singular, rows = torch.linalg.svd(flat.double() - flat.double().mean(0), full_matrices=False)
    assert torch.allclose((rows[:3] @ colours.components).abs(), torch.eye(3, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(colours.explained, (singular.square() / singular.square().sum())[:3])


def test_equal_features_have_equal_colours_and_all_lie_in_the_unit_range() -> None:
    reference = features(50, 8)
    colours = PrincipalColours.of(reference)
    others = torch.cat([10 * features(50, 8, seed=1), reference])
    assert torch.allclose(colours(others)[50:], colours(reference))
    assert colours(others).min() >= 0 and colours(others).max() <= 1
    assert (colours(reference).amax(0) == 1).all() and (colours(reference).amin(0) == 0).all()


def test_constant_features_have_one_colour() -> None:
    constant = torch.ones(20, 8)
    assert torch.isfinite(PrincipalColours.of(constant)(constant)).all()


def test_plotting_leaves_the_random_state_unchanged() -> None:
    before = torch.get_rng_state()
    PrincipalColours.of(features(50, 8))
    assert torch.equal(torch.get_rng_state(), before)
