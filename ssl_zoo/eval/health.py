"""Measures of features that need no labels: does the encoder still tell images apart, and along how many directions?

RankMe: Garrido et al., arXiv 2210.02885. alpha-ReQ: Agrawal et al., NeurIPS 2022. LiDAR: Thilak et al., arXiv
2312.04000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.eval.augment import random_views
from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject
from ssl_zoo.eval.features import evaluating, pooled
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


@dataclass
class HealthConfig(EvaluatorConfig):
    """Label-free measures on the features of the test images."""

    lidar_images: int = setting(256, "images whose views are told apart by LiDAR; 0 leaves it out")
    lidar_views: int = setting(8, "random crops of each of them")
    crop_scale: list[float] = setting([0.3, 1.0], "area of those crops, [low, high]")

    def __post_init__(self) -> None:
        if self.lidar_images == 1 or self.lidar_images < 0 or self.lidar_views < 2:
            raise ValueError(
                f"health.lidar_images={self.lidar_images} must be 0 or at least 2, "
                f"health.lidar_views={self.lidar_views} at least 2"
            )


@EVALUATORS.register("health", HealthConfig)
class Health(Evaluator):
    """RankMe, alpha-ReQ, LiDAR, deviation per dimension and mean cosine of features: no labels, no training."""

    needs_labels = False
    config: HealthConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        _, test = subject.features(self.config)
        values = test.values
        if values.ndim != 2:
            raise ValueError("health: one vector per image is needed; use another pooling than tokens")
        measures = {
            "rankme": rankme(values),
            "alpha_req": alpha_req(values),
            "feature_std": feature_std(values),
            "mean_cosine": mean_cosine(values),
        }
        if self.config.lidar_images:
            measures["lidar"] = lidar(self._views(subject))
        protocol = self.protocol(subject)
        finite = {name: value for name, value in measures.items() if math.isfinite(value)}
        return [Score(name, value, protocol, is_fraction=False) for name, value in finite.items()]

    @torch.no_grad()
    def _views(self, subject: Subject) -> Float[Tensor, "n views D"]:
        config, parts = self.config, []
        generator = generator_for("health", "views")
        wanted = min(config.lidar_images, subject.test.num_images)
        with evaluating(subject.encoder), subject.precision():
            for images, _, _ in subject.test:
                images = images[: wanted - sum(map(len, parts))].to(subject.device)
                views = [random_views(images, config.crop_scale, generator) for _ in range(config.lidar_views)]
                settings = config.pooling, config.num_layers, config.final_norm
                features = [pooled(subject.encoder, view, *settings) for view in views]
                parts.append(torch.stack(features, dim=1).float().cpu())
                if sum(map(len, parts)) >= wanted:
                    break
        return torch.cat(parts)


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (eq. 1-2), between 1 and min(n, D)."""
    singular = torch.linalg.svdvals(features.double())
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def alpha_req(features: Float[Tensor, "n D"]) -> float:
    """Decay exponent of the covariance's eigenvalues, lambda_i ~ i^-alpha, by least squares on a log-log scale.

    About 1 is best; large: few directions carry everything; 0: white noise.
    """
    spectrum = torch.linalg.svdvals((features - features.mean(dim=0)).double()).square() / max(1, len(features) - 1)
    spectrum = spectrum[spectrum > 1e-12 * spectrum.max()]
    if len(spectrum) < 2:
        return math.inf  # a single direction is left
    ranks = torch.arange(1, len(spectrum) + 1, dtype=torch.float64).log()
    centred = ranks - ranks.mean()
    return float(-(centred * spectrum.log()).sum() / centred.square().sum())


def lidar(features: Float[Tensor, "n views D"], delta: float = 1e-4) -> float:
    """Effective rank of the between-image covariance as seen by the within-image one (section 4, eq. 1-5).

    Args:
        delta: added to the diagonal of the within-image covariance.
    """
    features = features.double()
    means = features.mean(dim=1)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / (len(means) - 1)
    rest = (features - means[:, None]).flatten(0, 1)
    within = rest.T @ rest / (len(means) * (features.shape[1] - 1)) + delta * torch.eye(rest.shape[1]).double()
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp_min(0)
    if not spectrum.sum() > 0:
        return 1.0
    share = spectrum / spectrum.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Float[Tensor, "n D"]) -> float:
    """Standard deviation over images of unit-length features, mean over dimensions, times sqrt(D): 1 is the most."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return float(unit.std(dim=0).mean() * features.shape[1] ** 0.5)


def mean_cosine(features: Float[Tensor, "n D"]) -> float:
    """Mean cosine similarity of the features of two different images; 1 where all are the same."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    count = len(unit)
    if count < 2:
        raise ValueError("health: at least two test images are needed; raise probe.test_samples")
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (count * (count - 1)))
