"""Label-free measures of features: does the encoder separate images, and along how many directions?

RankMe: Garrido et al., arXiv 2210.02885. alpha-ReQ: Agrawal et al., NeurIPS 2022. LiDAR: Thilak et al., arXiv
2312.04000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.eval.augment import random_crops
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import evaluating, pooled
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.scores import LABEL_FREE, Score
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


@dataclass
class HealthConfig(EvaluatorConfig):
    """Label-free measures on the features of the test images."""

    lidar_images: int = setting(256, "images for LiDAR; 0 = no LiDAR", at_least=0)
    lidar_views: int = setting(8, "random crops of each image for LiDAR", at_least=2)
    crop_scale: list[float] = setting(
        [0.3, 1.0], "relative area of the crops, [low, high]", above=0, at_most=1, length=2
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lidar_images == 1:
            raise ValueError(f"{self.key('lidar_images')}=1 must be 0 or at least 2")


@EVALUATORS.register("health", HealthConfig)
class Health(Evaluator):
    """RankMe, alpha-ReQ, LiDAR, standard deviation and mean cosine of features: no labels, no training."""

    needs_labels = False
    metric_groups = dict.fromkeys(LABEL_FREE, "health")
    config: HealthConfig

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        return _too_few(test.num_images)

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        values = model.test_features(self.config).values
        if values.ndim != 2:
            raise ValueError("health: one vector per image is needed; use another pooling than tokens")
        measures = {"rankme": rankme(values), "alpha_req": alpha_req(values)}
        measures |= {"feature_std": feature_std(values), "mean_cosine": mean_cosine(values)}
        if self.config.lidar_images:
            measures["lidar"] = lidar(self._views(model))
        protocol = self.protocol(model)
        finite = {name: value for name, value in measures.items() if math.isfinite(value)}
        return [Score(name, value, protocol, is_fraction=False) for name, value in finite.items()]

    def cost(self, workload: Workload) -> Cost:
        config, dim, num_test = self.config, self.feature_width(workload.encoder), workload.num_test
        num_views = min(config.lidar_images, num_test) * config.lidar_views
        held = workload.part_bytes(dim) + 4 * dim * num_test + 5 * 8 * dim * num_test
        encoded = workload.num_images + workload.world_size * num_views
        how = "two singular value decompositions; the views of LiDAR are encoded on every rank"
        flops = 2 * 4.0 * max(num_test, dim) * min(num_test, dim) ** 2
        return Cost(max(held, workload.extraction_bytes(dim)), encoded, flops, how)

    @torch.no_grad()
    def _views(self, model: EvaluatedModel) -> Float[Tensor, "n views D"]:
        config, parts = self.config, []
        generator = generator_for("health", "views")
        num_images = min(config.lidar_images, model.test.num_images)
        with evaluating(model.encoder), model.precision():
            for images, _, _ in model.test:
                images = images[: num_images - sum(map(len, parts))].to(model.device)
                views = [random_crops(images, config.crop_scale, generator) for _ in range(config.lidar_views)]
                settings = config.pooling, config.num_layers, config.final_norm
                features = [pooled(model.encoder, view, *settings) for view in views]
                parts.append(torch.stack(features, dim=1).float().cpu())
                if sum(map(len, parts)) >= num_images:
                    break
        return torch.cat(parts)


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Compute the effective rank: exp of the entropy of the normalised singular values (eq. 1-2), in 1..min(n, D)."""
    singular = torch.linalg.svdvals(features.double())
    fractions = singular / singular.sum() + 1e-7
    return float(torch.exp(-(fractions * fractions.log()).sum()))


def alpha_req(features: Float[Tensor, "n D"]) -> float:
    """Fit the decay exponent of the covariance's eigenvalues, lambda_i ~ i^-alpha, by least squares on a log-log scale.

    About 1 is best. A large value means that few directions hold the variance; 0 is white noise.
    """
    spectrum = torch.linalg.svdvals((features - features.mean(dim=0)).double()).square() / max(1, len(features) - 1)
    spectrum = spectrum[spectrum > 1e-12 * spectrum.max()]
    if len(spectrum) < 2:
        return math.inf  # only one direction has variance
    ranks = torch.arange(1, len(spectrum) + 1, dtype=torch.float64).log()
    centred = ranks - ranks.mean()
    return float(-(centred * spectrum.log()).sum() / centred.square().sum())


def lidar(features: Float[Tensor, "n views D"], delta: float = 1e-4) -> float:
    """Compute the effective rank of the between-image covariance, whitened by the within-image one (sec. 4, eq. 1-5).

    Args:
        delta: value added to the diagonal of the within-image covariance.
    """
    features = features.double()
    means = features.mean(dim=1)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / (len(means) - 1)
    residuals = (features - means[:, None]).flatten(0, 1)
    within = residuals.T @ residuals / (len(means) * (features.shape[1] - 1))
    within = within + delta * torch.eye(len(within)).double()
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp_min(0)
    if not spectrum.sum() > 0:
        return 1.0
    fractions = spectrum / spectrum.sum() + 1e-7
    return float(torch.exp(-(fractions * fractions.log()).sum()))


def feature_std(features: Float[Tensor, "n D"]) -> float:
    """Average the standard deviation of unit-length features over dimensions, times sqrt(D); the maximum is 1."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return float(unit.std(dim=0).mean() * features.shape[1] ** 0.5)


def mean_cosine(features: Float[Tensor, "n D"]) -> float:
    """Average the cosine similarity over pairs of different images; 1 if all features are the same."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    count = len(unit)
    if too_few := _too_few(count):
        raise CannotEvaluate(f"health: {too_few}")
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (count * (count - 1)))


def _too_few(num_test: int) -> str | None:
    if num_test >= 2:
        return None
    return f"at least two test images are needed, not {num_test}; raise probe.test_samples or data.test_fraction"
