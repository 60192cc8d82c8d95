"""What is known of objects in blocks of rendered scenes, and the errors that are computed from it."""

from dataclasses import replace

import pytest
import torch

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.raycast import discs, render
from ssl_zoo.data.shapes import SPHERE
from ssl_zoo.data.sources import Split
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.data.transforms import render_equal, sample_params
from ssl_zoo.decoding.measure import errors, explained
from ssl_zoo.decoding.scenes import Objects, _covered, _discs_in_view, _visible, partners
from ssl_zoo.seeding import generator_for

SOURCE = RenderedScenes(ScenesConfig(image_size=64, num_train=64, num_test=8), Split.train)


def recoloured(scenes, slot):
    """Scenes in which one object has the opposite colour, so that the differing pixels are those of the object."""
    color = scenes.color.clone()
    color[:, slot] = 1 - color[:, slot]
    return replace(scenes, color=color)


def test_the_disc_of_an_object_is_where_the_renderer_draws_it():
    scenes = SOURCE.scenes(torch.arange(64))
    scenes = replace(scenes, count=torch.ones_like(scenes.count), shape=torch.full_like(scenes.shape, SPHERE))
    centers, radii = discs(scenes, 64)
    differs = (render(scenes, 64).int() - render(recoloured(scenes, 0), 64).int()).abs().sum(1) > 0
    places = torch.arange(64) + 0.5
    for image in range(64):
        mask = differs[image]
        middle = torch.tensor([places[mask.any(1)].mean(), places[mask.any(0)].mean()])
        inside = ((centers[image, 0] > radii[image, 0]) & (centers[image, 0] < 64 - radii[image, 0])).all()
        if inside:
            assert (middle - centers[image, 0]).abs().max() < 1.0
            assert abs((mask.sum() / torch.pi).sqrt() - radii[image, 0]) < 1.5  # half a pixel of antialiasing


def test_crops_and_flips_move_the_discs_with_the_pixels():
    spec = ViewSpec("image", (48, 48), ViewConfig(crop_scale=[0.3, 0.5], horizontal_flip=0.5))
    index = torch.arange(64)
    params = sample_params(spec.config, 64, generator_for(0, "crops"))
    found = _discs_in_view(SOURCE, index, params, spec)
    assert params.flipped.any() and not params.flipped.all()
    first = found.scenes.ground[..., 1].masked_fill(~found.present, 99).argmin(1)  # the nearest, which nothing hides
    changed = found.scenes.color.clone()
    changed[index, first] = 1 - changed[index, first]
    other = render(replace(found.scenes, color=changed), 64)
    difference = render_equal(SOURCE.images(index), params, spec).int() - render_equal(other, params, spec).int()
    checked = 0
    for image, slot in enumerate(first.tolist()):
        center, radius = found.centers[image, slot], found.radii[image, slot]
        if ((center > 1.5 * radius) & (center < 48 - 1.5 * radius)).all():
            mask = difference[image].abs().sum(0) > 8
            places = torch.arange(48) + 0.5
            middle = torch.tensor([places[mask.any(1)].mean(), places[mask.any(0)].mean()])
            assert (middle - center).norm() < 0.35 * radius.max() + 1
            checked += 1
    assert checked > 10


def test_the_covered_fraction_of_a_block_is_that_of_the_disc():
    corner, sides = torch.zeros(1, 2), torch.full((1, 2), 16.0)
    centers, radii = torch.tensor([[[8.0, 8.0], [0.0, 0.0]]]), torch.full((1, 2, 2), 6.0)
    covered = _covered(centers, radii, corner, sides)[0]
    assert covered.tolist() == pytest.approx([torch.pi * 36 / 256, torch.pi * 36 / 4 / 256], abs=0.01)


def test_the_visible_fraction_of_an_object_is_that_of_its_disc_in_the_context():
    centers, radii = torch.tensor([[16.0, 16.0], [8.0, 8.0], [16.0, 24.0]]), torch.full((3, 2), 6.0)
    context = torch.tensor([[0, 1, 2], [0, 1, 2], [3, 4, 7]])  # of a grid of 4 x 4 patches of 8 pixels
    visible = _visible(centers, radii, context, (4, 4), torch.tensor([8.0, 8.0]))
    assert visible.tolist() == pytest.approx([0.0, 0.5, 0.25], abs=0.02)


def test_a_partner_is_another_block_at_the_same_place():
    places = torch.tensor([4, 2, 4, 7, 2, 4])
    own, other = partners(places)
    assert sorted(own.tolist()) == [0, 1, 2, 4, 5]
    assert torch.equal(places[own], places[other]) and not (own == other).any()


def test_errors_are_distances_in_pixels_of_the_view():
    objects = Objects(torch.tensor([[0.25, -0.5]]), torch.tensor([[0.2, 0.4, 0.6]]), torch.tensor([2]))
    outputs = torch.tensor([[0.0, 0.0, 0.3, 0.4, 0.4, -1.0, -2.0, -0.5, -3.0]])
    found = errors(outputs, torch.tensor([[16.0, 24.0]]), objects)
    assert found["position_px"].item() == pytest.approx((4.0**2 + 12.0**2) ** 0.5)
    assert found["color"].item() == pytest.approx(0.1)
    assert found["shape"].item() == 0.0


def test_variance_is_explained_by_features_that_hold_the_values_and_not_by_noise():
    generator = generator_for("explained")
    features, noise = torch.randn(400, 3, generator=generator), torch.randn(400, 3, generator=generator)
    values = features @ torch.randn(3, 2, generator=generator)
    assert explained(features, values) > 0.95
    assert explained(noise, values) < 0.1
