import math

import numpy
import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval.health import (
    HealthConfig,
    alpha_req,
    feature_sigreg,
    feature_std,
    lidar,
    mean_cosine,
    rankme,
    variance_within_images,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def power_law(alpha: float, num_images: int = 4000, dim: int = 40) -> torch.Tensor:
    """Features whose covariance has exactly the eigenvalues i^-alpha."""
    basis = torch.linalg.qr(normal(num_images, dim) - normal(num_images, dim).mean(0)).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q
    return basis * torch.arange(1, dim + 1, dtype=torch.float64) ** (-alpha / 2)


def test_rankme_is_the_formula_on_singular_values():
    values = normal(300, 20) * torch.logspace(0, -3, 20).double()
    singular = numpy.linalg.svd(values.numpy(), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    assert rankme(values) == pytest.approx(math.exp(-(share * numpy.log(share)).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        (torch.ones(50, 8), 1.0),
        (normal(100, 1) * torch.ones(1, 8), 1.0),
        (torch.linalg.qr(normal(100, 8)).Q, 8.0),
        (torch.cat([torch.linalg.qr(normal(100, 3)).Q, torch.zeros(100, 5).double()], dim=1), 3.0),
    ],
)
def test_rankme_counts_directions(values, rank):
    assert rankme(values) == pytest.approx(rank, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_req_finds_the_exponent_of_a_power_law(alpha):
    assert alpha_req(power_law(alpha)) == pytest.approx(alpha, abs=1e-6)


def test_alpha_req_equals_a_fit_to_the_eigenvalues_of_the_covariance():
    values = normal(500, 12) @ normal(12, 12, seed=1)
    spectrum = numpy.sort(numpy.linalg.eigvalsh(numpy.cov(values.numpy().T)))[::-1]
    slope, _ = numpy.polyfit(numpy.log(numpy.arange(1, 13)), numpy.log(spectrum), 1)
    assert alpha_req(values) == pytest.approx(-slope, rel=1e-6)


def test_a_single_direction_has_no_finite_exponent():
    assert alpha_req(torch.ones(50, 8)) == alpha_req(normal(50, 1) * torch.ones(1, 8)) == math.inf


def test_lidar_counts_directions_that_separate_images():
    images = torch.zeros(200, 1, 10, dtype=torch.float64)
    images[..., :3] = torch.linalg.qr(normal(200, 3) - normal(200, 3).mean(0)).Q[:, None] * 50
    views = images + 0.1 * normal(200, 6, 10, seed=1)
    assert lidar(views) == pytest.approx(3, abs=0.1)
    assert lidar(torch.ones(20, 4, 10)) == 1.0


def test_sigreg_is_that_of_gaussian_samples_for_features_of_any_mean_and_scale():
    views = normal(300, 8, 64)
    assert feature_sigreg(views) == pytest.approx(1.06, abs=0.15)
    assert feature_sigreg(0.01 * views - 7) == pytest.approx(feature_sigreg(views), rel=1e-3)


def test_sigreg_is_larger_for_few_directions_and_for_other_shapes_than_a_gaussian():
    views = normal(400, 3, 16)
    narrow = views * torch.tensor([1.0] * 2 + [0.01] * 14, dtype=torch.float64)
    one = normal(400, 3, 1).sign() * torch.ones(16)  # two points
    assert 1.5 < feature_sigreg(narrow) < feature_sigreg(one)
    assert math.isfinite(feature_sigreg(torch.ones(20, 4, 8)))


def test_the_invariance_is_the_share_of_the_variance_within_images():
    images = normal(300, 1, 12).expand(300, 4, 12)
    views = (images + 0.5 * normal(300, 4, 12, seed=1)).contiguous()
    within = sum(float((views[:, v] - views.mean(dim=1)).square().sum()) for v in range(4))
    total = sum(float((views[:, v] - views.flatten(0, 1).mean(dim=0)).square().sum()) for v in range(4))
    assert 0.1 < within / total < 0.2
    assert variance_within_images(views) == pytest.approx(within / total, rel=1e-5)
    assert variance_within_images(torch.ones(20, 4, 8)) == 0


def test_the_loss_of_lejepa_weighs_sigreg_and_invariance_of_the_crops():
    [evaluator] = (made := probe(evaluators=["health"], health=HealthConfig(lidar_images=20, lidar_views=3))).evaluators
    scores, model = {s.name: s.value for s in made(encoder())}, made.evaluated_model(encoder())
    views = evaluator._views(model, model.test.index[:20])
    assert scores["feature_sigreg"] == feature_sigreg(views)
    expected = 0.05 * feature_sigreg(views) + 0.95 * variance_within_images(views)
    assert scores["lejepa_loss"] == pytest.approx(expected)


def test_collapsed_features_have_no_deviation_and_cosine_one():
    same = torch.ones(30, 8) * torch.arange(1, 31)[:, None]
    assert feature_std(same) == pytest.approx(0, abs=1e-7) and mean_cosine(same) == pytest.approx(1)
    spread = normal(2000, 64)
    assert feature_std(spread) == pytest.approx(1, abs=0.02) and mean_cosine(spread) == pytest.approx(0, abs=0.01)


def test_mean_cosine_is_over_pairs_of_different_images():
    values = normal(20, 5)
    unit = torch.nn.functional.normalize(values, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(20) for j in range(20) if i != j]
    assert mean_cosine(values) == pytest.approx(sum(pairs) / len(pairs))


def test_a_collapsed_encoder_differs_from_a_random_one():
    health = HealthConfig(lidar_images=20, lidar_views=3)
    alive = {s.name: s.value for s in probe(evaluators=["health"], health=health)(encoder())}
    net = encoder()
    for parameter in net.norm.parameters():
        torch.nn.init.ones_(parameter)
    torch.nn.init.zeros_(net.norm.weight)
    dead = {s.name: s.value for s in probe(evaluators=["health"], health=health)(net)}
    assert dead["rankme"] == pytest.approx(1, abs=1e-3) and alive["rankme"] > 1.5
    assert dead["mean_cosine"] == pytest.approx(1) and alive["mean_cosine"] < 0.999
    assert dead["lidar"] == pytest.approx(1, abs=1e-3) and alive["lidar"] > 1.5
    assert "alpha_req" in alive and "alpha_req" not in dead  # not finite, which JSON can't hold


def test_crops_do_not_depend_on_the_batch_size():
    health = HealthConfig(lidar_images=20, lidar_views=3)
    scores = [
        {s.name: s.value for s in probe(evaluators=["health"], health=health, batch_size=size)(encoder())}
        for size in (256, 7)
    ]
    for name in ("lidar", "feature_sigreg", "lejepa_loss"):
        assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-3)


def test_invalid_settings_name_their_key():
    with pytest.raises(ValueError, match=r"probe\.health\.lidar_images=1 must be 0 or at least 2"):
        HealthConfig(lidar_images=1)
    with pytest.raises(ValueError, match=r"probe\.health\.lidar_views=1 must be at least 2"):
        HealthConfig(lidar_views=1)
