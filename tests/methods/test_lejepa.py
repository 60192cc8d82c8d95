"""LeJEPA's loss against a slow restatement, and its refusals."""

import pytest
import torch
from tiny_methods import PROGRESS, TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views

from ssl_zoo.engine.build import build_views
from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.sigreg import sigreg
from ssl_zoo.losses.visreg import visreg
from ssl_zoo.method import METHODS, Batch, Method, Progress
from ssl_zoo.world import World

Distribution = METHODS.config_of("lejepa")().distribution.__class__


def projections(method: Method, batch: Batch) -> list[torch.Tensor]:
    """Of every crop in order; batch normalization sees all crops together."""
    features = torch.cat([method.encoder.pooled(method.encoder(crop)) for crop in batch.views.values()])
    return list(method.head(features, World()).chunk(len(batch.views)))


def reference_losses(method: Method, batch: Batch, distribution: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Invariance and distance from a Gaussian, image by image and crop by crop."""
    crops = projections(method, batch)
    differences, distances = [], []
    for image in range(batch.num_images):
        center = (crops[0][image] + crops[1][image]) / 2
        differences += [(crop[image] - center).square().mean() for crop in crops]
    for crop in crops:
        directions = random_directions(torch.tensor(float(PROGRESS.step)), 16, 32)
        if distribution is Distribution.visreg:
            terms = visreg(crop[:, None], directions, World())
            distances.append(terms.center + terms.scale + terms.shape)
        else:
            distances.append(sigreg(crop[:, None], directions, World(), max_frequency=3.0, num_knots=17))
    return torch.stack(differences).mean(), torch.stack(distances).mean()


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("weight", [0.05, 0.6])
def test_the_loss_weighs_invariance_to_the_global_crops_against_the_distance_of_each_crop(
    distribution: Distribution, weight: float
) -> None:
    method = tiny_method("lejepa", distribution=distribution, distribution_weight=weight)
    batch = tiny_batch(method, "lejepa", num_images=6)
    invariance, distance = reference_losses(method, batch, distribution)
    losses = method(batch, step_of(method)).losses
    torch.testing.assert_close(losses["invariance"], (1 - weight) * invariance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["distribution"], weight * distance, rtol=1e-5, atol=1e-6)


def test_the_loss_is_scaled_by_the_power_of_its_weight_that_orders_trainings() -> None:
    def output(**settings):
        method = tiny_method("lejepa", **settings)
        return method(tiny_batch(method, "lejepa"), step_of(method))

    found = output(distribution_weight=0.2)
    expected = (found.losses["invariance"] + found.losses["distribution"]) / 0.2**0.4
    torch.testing.assert_close(found.metrics["scaled_loss"], expected.detach())
    assert "scaled_loss" not in output(distribution_weight=0.0).metrics
    assert "scaled_loss" not in output(distribution=Distribution.visreg).metrics


def test_the_directions_are_new_in_each_step_and_of_no_other_number() -> None:
    method = tiny_method("lejepa")
    batch = tiny_batch(method, "lejepa")
    first, again, later = (
        method(batch, step_of(method, Progress(step, 100, samples))).loss for step, samples in ((3, 0), (3, 8), (4, 0))
    )
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_without_local_crops_the_views_are_the_two_global_ones() -> None:
    method = tiny_method("lejepa")
    batch = tiny_batch(method, "lejepa")
    only = Batch({name: view for name, view in batch.views.items() if name.startswith("global")})
    assert method(only, step_of(method)).loss.isfinite()


def test_there_is_no_teacher_and_the_encoder_itself_is_evaluated() -> None:
    method = tiny_method("lejepa")
    assert method.emas() == () and method.eval_encoder() is method.encoder


def test_equal_projections_are_below_the_limit_of_the_alarm_and_initial_ones_are_not() -> None:
    method = tiny_method("lejepa")
    batch = tiny_batch(method, "lejepa")
    [limit] = method.collapse_limits()
    assert not limit.is_beyond(method(batch, step_of(method)).metrics["projection_std"].item())
    torch.nn.init.zeros_(method.head.fc3.weight)
    assert limit.is_beyond(method(batch, step_of(method)).metrics["projection_std"].item())


def test_masks_and_targets_are_refused() -> None:
    method = tiny_method("lejepa")
    views = {spec.name: spec for spec in build_views(tiny_views("lejepa"), TINY_BACKBONE)}
    masks = tiny_batch(tiny_method("mae"), "mae").masks["image"]
    with pytest.raises(ValueError, match="LeJEPA's crops are not masked: set masks=null, or choose method=ijepa"):
        method.check_inputs(views, {"global_0": masks})
    with pytest.raises(ValueError, match="targets=null"):
        tiny_method("lejepa", target_overrides={"name": "pixels"})
