"""Label-free measures of features: does the encoder separate images, and along how many directions?

RankMe: Garrido et al., arXiv 2210.02885. alpha-ReQ: Agrawal et al., NeurIPS 2022. LiDAR: Thilak et al., arXiv
2312.04000. LeJEPA's loss: Balestriero and LeCun, arXiv 2511.08544.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.eval.augment import random_crops
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import evaluating, pooled
from ssl_zoo.eval.ranks import rank_and_size, sum_over_ranks
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.losses.directions import random_directions
from ssl_zoo.losses.sigreg import sigreg
from ssl_zoo.scores import LABEL_FREE, Score
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting
from ssl_zoo.world import World

# LeJEPA: arXiv 2511.08544, section 6, and the integral of its code.
_SIGREG_WEIGHT, _NUM_DIRECTIONS, _INTEGRAL = 0.05, 1024, {"max_frequency": 3.0, "num_knots": 17}
_OPERATIONS = 16  # of a sine or cosine, about


@dataclass
class HealthConfig(EvaluatorConfig):
    """Label-free measures on the features of the test images, or of the train images where there is no test image."""

    lidar_images: int = setting(256, "images whose crops LiDAR and LeJEPA's loss compare; 0 = neither", at_least=0)
    lidar_views: int = setting(8, "random crops of each of these images", at_least=2)
    crop_scale: list[float] = setting(
        [0.3, 1.0], "relative area of the crops, [low, high]", above=0, at_most=1, length=2
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lidar_images == 1:
            raise ValueError(f"{self.key('lidar_images')}=1 must be 0 or at least 2")


@EVALUATORS.register("health", HealthConfig)
class Health(Evaluator):
    """RankMe, alpha-ReQ, LiDAR, SIGReg, LeJEPA's loss, spread and cosine of features: no labels, no training."""

    needs_labels = False
    needs_test_images = False
    metric_groups = dict.fromkeys(LABEL_FREE, "health")
    config: HealthConfig

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        return _too_few(test.num_images or train.num_images)

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        protocol = self.protocol(model)
        if model.test.num_images == 0:
            model = model.with_test(model.train)
        features = model.test_features(self.config)
        values = features.values
        if values.ndim != 2:
            raise ValueError("health: one vector per image is needed; use another pooling than tokens")
        measures = {"rankme": rankme(values), "alpha_req": alpha_req(values)}
        measures |= {"feature_std": feature_std(values), "mean_cosine": mean_cosine(values)}
        if self.config.lidar_images:
            views = self._views(model, features.index[: self.config.lidar_images])
            measures |= {"lidar": lidar(views), "feature_sigreg": (distance := feature_sigreg(views))}
            measures["lejepa_loss"] = _SIGREG_WEIGHT * distance + (1 - _SIGREG_WEIGHT) * variance_within_images(views)
        finite = {name: value for name, value in measures.items() if math.isfinite(value)}
        return [Score(name, value, protocol, is_fraction=False) for name, value in finite.items()]

    def cost(self, workload: Workload) -> Cost:
        config, dim = self.config, self.feature_width(workload.encoder)
        num_images = workload.num_test or workload.num_train
        num_views = min(config.lidar_images, num_images) * config.lidar_views
        part = 4 * dim * num_images / workload.world_size
        held = part + 4 * dim * num_images + 5 * 8 * dim * num_images  # in float32, and copies in float64
        how = "two singular value decompositions and the cosines of LeJEPA's loss"
        flops = 2 * 4.0 * max(num_images, dim) * min(num_images, dim) ** 2
        flops += num_views * _NUM_DIRECTIONS * (2.0 * dim + 2 * _OPERATIONS * _INTEGRAL["num_knots"])
        return Cost(held, num_images + num_views, flops, how)

    @torch.no_grad()
    def _views(self, model: EvaluatedModel, chosen: Int[Tensor, "n"]) -> Float[Tensor, "n views D"]:
        """Encode random crops of the first test images that could be decoded; each rank encodes those of its batches.

        Crops are a function of the image's place, so that they depend on neither the batch size nor the ranks.
        """
        config, generator = self.config, generator_for("health", "views")
        samples = torch.rand(config.lidar_views, len(chosen), 4, generator=generator)
        rows = {sample: row for row, sample in enumerate(chosen.tolist())}
        settings = config.pooling, config.num_layers, config.final_norm
        encoded = torch.zeros(len(chosen), config.lidar_views, self.feature_width(model.encoder))
        rank, world_size = rank_and_size()
        last = int((model.test.index == chosen[-1]).nonzero()[0])
        num_batches = len(range(rank, last // model.test.data().batch_size + 1, world_size))  # of this rank
        with evaluating(model.encoder), model.precision():
            for images, index in islice(model.test.of_rank(rank, world_size), num_batches):
                own = [rows[sample] for sample in index.tolist() if sample in rows]
                images = images[: len(own)].to(model.device)  # chosen images come first
                for view in range(config.lidar_views if own else 0):
                    crops = random_crops(images, config.crop_scale, samples[view, own])
                    encoded[own, view] = pooled(model.encoder, crops, *settings).float().cpu()
        [encoded] = sum_over_ranks(encoded)  # each row is that of one rank: no rounding
        return encoded


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Compute the effective rank: exp of the entropy of the normalised singular values (eq. 1-2), in 1..min(n, D)."""
    singular = torch.linalg.svdvals(features.double())
    fractions = singular / singular.sum() + 1e-7
    return float(torch.exp(-(fractions * fractions.log()).sum()))


def alpha_req(features: Float[Tensor, "n D"]) -> float:
    """Fit the decay exponent of the covariance's eigenvalues, lambda_i ~ i^-alpha, by least squares on a log-log scale.

    About 1 is best. A large value means that few directions hold the variance; 0 is white noise. Differs from the
    reference: all eigenvalues are fitted, where its code leaves out the first ones.
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


def feature_sigreg(features: Float[Tensor, "n views D"]) -> float:
    """Compute SIGReg of centered features of unit mean variance: about 1 if they are Gaussian and isotropic, else more.

    Differs from the reference: its samples are outputs of a projector, which methods other than LeJEPA do not have.
    Features that are scaled as a whole take their place, so that the scale that a method gives them does not count.
    """
    scaled = _scaled(features)
    directions = random_directions(scaled.new_zeros(()), scaled.shape[-1], _NUM_DIRECTIONS)
    return float(sigreg(scaled, directions, World(), **_INTEGRAL))


def variance_within_images(features: Float[Tensor, "n views D"]) -> float:
    """Compute LeJEPA's invariance on the features of ``feature_sigreg``, in 0..1.

    It is the mean squared distance of a crop's features from the mean of the image's crops.
    """
    scaled = _scaled(features)
    return float((scaled - scaled.mean(dim=1, keepdim=True)).square().mean())


def _scaled(features: Float[Tensor, "n views D"]) -> Float[Tensor, "n views D"]:
    """Center features over all views and scale them to a variance of 1 on average; equal ones become 0."""
    centered = features.double() - features.double().mean(dim=(0, 1))
    return (centered / centered.square().mean().sqrt().clamp_min(1e-12)).float()


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


def _too_few(num_images: int) -> str | None:
    if num_images >= 2:
        return None
    return f"at least two images are needed, not {num_images}; raise probe.test_samples or data.test_fraction"
