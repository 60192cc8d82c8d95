"""Linear classifiers on frozen features, trained by gradient descent for a whole grid of settings at once.

Protocols: I-JEPA (arXiv 2301.08243, appendix A.2: LARS, step schedule, learning rates {0.01, 0.05, 0.001} x weight
decays {0.0005, 0}, the better of the last layer and the last four) and DINOv2 (arXiv 2304.07193: SGD, cosine schedule,
a grid of learning rates); ``presets.py`` has them and others. Features of images that nothing augments are extracted
once, where they fit into memory. Otherwise images stream through the encoder, and all heads share its forward passes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, accuracy, check_classification
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import Features, Pooling, feature_dim
from ssl_zoo.eval.heads import Rates, Scorer, StreamedFit, choose, score_of
from ssl_zoo.eval.linear_heads import LinearHeads, LinearKind
from ssl_zoo.eval.logistic import Preprocessing, preprocessed
from ssl_zoo.eval.stacked_optim import LARS_TRUST, StackedSGD
from ssl_zoo.eval.subsets import take_rows
from ssl_zoo.eval.trained import ProbeHeadsConfig, TrainedEvaluator, check_split_labels, cost_of_heads
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


class Optimizer(Enum):
    """Optimizer of the classifiers, with momentum."""

    sgd = "sgd"
    lars = "lars"  # scales each update by the norm of the weights over that of their gradient, arXiv 1708.03888


class Schedule(Enum):
    """Learning-rate schedule."""

    cosine = "cosine"  # to zero
    step = "step"  # divided by 10 every step_epochs


@dataclass
class LinearConfig(ProbeHeadsConfig):
    """Linear probe. The best settings on held-out train images are trained again on all train images."""

    added = frozenset(
        {
            *("horizontal_flip", "crop_scale", "interpolation", "selection", "refit", "preprocessings", "nesterov"),
            *("step_epochs", "warmup_epochs"),
        }
    )

    poolings: list[Pooling] = setting([], "poolings to choose from; [] = pooling alone")
    lrs: list[float] = setting(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "learning rates to choose from, per 256 images", above=0
    )
    weight_decays: list[float] = setting([0.0], "weight decays to choose from", at_least=0)
    optimizer: Optimizer = setting(Optimizer.sgd, "sgd or lars")
    schedule: Schedule = setting(Schedule.cosine, "cosine or step")
    step_epochs: float = setting(15.0, "epochs between two tenfold drops of the step schedule", above=0)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up", at_least=0)
    momentum: float = setting(0.9, "momentum of the optimizer")
    nesterov: bool = setting(False, "Nesterov's momentum")
    epochs: int = setting(30, "training epochs", at_least=1)
    batch_size: int = setting(1024, "images per step", at_least=1)
    preprocessing: Preprocessing = setting(Preprocessing.standardize, "standardize: MAE's batch norm without affine")
    preprocessings: list[Preprocessing] = setting([], "preprocessings to choose from; [] = preprocessing alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lrs", "weight_decays"):
            if not getattr(self, name):
                raise ValueError(f"{self.key(name)}=[] must have at least one value")
        if self.nesterov and self.optimizer is Optimizer.lars:
            raise ValueError(f"{self.key('nesterov')}=true needs {self.key('optimizer')}=sgd; LARS has plain momentum")

    @property
    def kinds(self) -> list[LinearKind]:
        """Return the kinds of features to choose from."""
        # Deepest first: features of fewer layers are slices of those of more.
        depths = sorted(self.layer_counts or [self.num_layers], reverse=True)
        poolings, preprocessings = self.poolings or [self.pooling], self.preprocessings or [self.preprocessing]
        return [LinearKind(*kind) for kind in itertools.product(poolings, depths, preprocessings)]

    @property
    def rates(self) -> list[Rates]:
        """Return the learning rates and weight decays to choose from."""
        return [Rates(*pair) for pair in itertools.product(self.lrs, self.weight_decays)]


@EVALUATORS.register("linear", LinearConfig)
class Linear(TrainedEvaluator):
    """Linear classifiers on frozen features by SGD or LARS; held-out images choose the best of a grid."""

    config: LinearConfig

    def scores(self, model: EvaluatedModel) -> Sequence[Score]:
        config, kinds, rates = self.config, self.config.kinds, self.config.rates
        num_images = model.train.num_images + model.test.num_images
        widths = {
            (kind.pooling, kind.num_layers): feature_dim(model.encoder, kind.pooling, kind.num_layers) for kind in kinds
        }
        num_bytes = 4 * num_images * sum(widths.values())
        if Pooling.tokens in (kind.pooling for kind in kinds):
            raise ValueError("linear: tokens are no feature: one vector per image is needed; use another pooling")
        streamed = config.is_streamed("linear", num_images, num_bytes)
        protocol = self.protocol(model, **({"features": "streamed"} if streamed else {}))
        if streamed:
            labels = check_split_labels("linear", model)
            make = partial(_heads, config, int(labels.max()) + 1, model.device)
            sizes = {"batch_size": config.batch_size, "epochs": config.epochs}
            fit_heads = StreamedFit(model, config, protocol, make, partial(_schedule_factor, config), **sizes)
            choice = choose(config, kinds, rates, model.train.num_images, fit_heads)
        else:
            cached = CachedFit(model, config)
            choice = choose(config, kinds, rates, cached.num_images(kinds), cached)
        return [score_of("linear", config, len(kinds) * len(rates), choice, protocol)]

    def cost(self, workload: Workload) -> Cost:
        kinds, encoder = self.config.kinds, workload.encoder
        shapes = {(kind.pooling, kind.num_layers) for kind in kinds}
        width = sum(feature_dim(encoder, *shape) for shape in shapes)
        return cost_of_heads(self.config, workload, width, len(kinds) * len(self.config.rates))


def _heads(
    config: LinearConfig,
    num_classes: int,
    device: torch.device,
    kinds: Sequence[LinearKind],
    dims: Sequence[int],
    rates: Sequence[Rates],
    batch_size: int,
) -> tuple[LinearHeads, StackedSGD]:
    heads = LinearHeads(kinds, dims, len(rates), num_classes, config.seed).to(device)
    lrs = [rate.lr * batch_size / 256 for rate in rates]
    is_lars = config.optimizer is Optimizer.lars
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov, "lars": is_lars}
    return heads, StackedSGD(heads.parameters(), lrs, [rate.weight_decay for rate in rates], **momentum)


@dataclass(frozen=True)
class CachedFit:
    """Trains heads on features that are extracted once and held in memory; as ``Fit``."""

    model: EvaluatedModel
    config: LinearConfig

    def num_images(self, kinds: Sequence[LinearKind]) -> int:
        """Return the number of train images, of which corrupt ones are left out, after checks of all features."""
        for kind in kinds:
            check_classification("linear", *self._features(kind))
        return len(self._features(kinds[0])[0].values)

    def __call__(self, kinds: Sequence[LinearKind], rates: Sequence[Rates], rows: Int[Tensor, "k"] | None) -> Scorer:
        trained = []
        for kind in kinds:
            train, _ = self._features(kind)
            fitted = train if rows is None else take_rows(train, rows)
            trained.append(CachedHeads(fitted, rates, self.config, kind.preprocessing, device=self.model.device))

        def score(rows: Int[Tensor, "k"] | None) -> Sequence[float]:
            values: list[float] = []
            for kind, heads in zip(kinds, trained, strict=True):
                train, test = self._features(kind)
                scored = test if rows is None else take_rows(train, rows)
                values += [accuracy(predicted, scored.labels) for predicted in heads.predict(scored)]
            return values

        return score

    def _features(self, kind: LinearKind) -> tuple[Features, Features]:
        return self.model.features(replace(self.config, pooling=kind.pooling, num_layers=kind.num_layers))


class CachedHeads:
    """Classifiers that are trained on features in memory, one per (learning rate, weight decay)."""

    def __init__(
        self,
        train: Features,
        rates: Sequence[Rates],
        config: LinearConfig,
        preprocessing: Preprocessing = Preprocessing.standardize,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.train, self.preprocessing = train.values.to(device), preprocessing
        values, _ = preprocessed(self.train, self.train[:0], preprocessing)
        self.weights, self.bias = fit(values, train.labels.to(device), rates, config)

    def predict(self, features: Features) -> Int[Tensor, "H n"]:
        """Predict the class of every image with each classifier."""
        _, values = preprocessed(self.train, features.values.to(self.train.device), self.preprocessing)
        heads = zip(self.weights, self.bias, strict=True)
        return torch.stack([(values @ weights + bias).argmax(dim=1) for weights, bias in heads]).cpu()


@torch.no_grad()
def fit(
    features: Float[Tensor, "n D"], labels: Int[Tensor, "n"], rates: Sequence[Rates], config: LinearConfig
) -> tuple[Float[Tensor, "H D classes"], Float[Tensor, "H classes"]]:
    """Train H classifiers on the same batches, each with its learning rate and weight decay.

    The gradient of the cross-entropy is written out: one matmul computes the logits of all classifiers, one their
    gradients.
    """
    (num_rows, dim), num_heads, num_classes = features.shape, len(rates), int(labels.max()) + 1
    generator = generator_for(config.seed, "linear")
    weights = 0.01 * torch.randn(dim, 1, num_classes, generator=generator).expand(-1, num_heads, -1)
    weights = weights.to(features.device).contiguous()
    bias = features.new_zeros(num_heads, num_classes)
    velocity, bias_velocity = torch.zeros_like(weights), torch.zeros_like(bias)
    batch_size = min(config.batch_size, num_rows)
    scale = batch_size / 256
    lr = features.new_tensor([scale * rate for rate, _ in rates])[:, None]
    decay = features.new_tensor([decay for _, decay in rates])[:, None]
    steps_per_epoch = math.ceil(num_rows / batch_size)
    targets = one_hot(labels, num_classes).to(features.dtype)
    for epoch in range(config.epochs):
        order = torch.randperm(num_rows, generator=generator).to(features.device)
        for step, rows in enumerate(order.split(batch_size)):
            batch = features[rows]
            logits = (batch @ weights.flatten(1)).view(len(rows), num_heads, num_classes) + bias
            error = (logits.softmax(dim=-1) - targets[rows, None]) / len(rows)
            gradient = (batch.T @ error.flatten(1)).view_as(weights) + decay * weights
            if config.optimizer is Optimizer.lars:
                norm, gradient_norm = weights.square().sum((0, 2)).sqrt(), gradient.square().sum((0, 2)).sqrt()
                trust = torch.where((norm > 0) & (gradient_norm > 0), LARS_TRUST * norm / gradient_norm, 1.0)
                gradient = gradient * trust[:, None]
            bias_gradient = error.sum(dim=0)
            velocity.mul_(config.momentum).add_(gradient)
            bias_velocity.mul_(config.momentum).add_(bias_gradient)
            rate = lr * _schedule_factor(config, epoch + step / steps_per_epoch)
            weights -= rate * (gradient + config.momentum * velocity if config.nesterov else velocity)
            bias -= rate * (bias_gradient + config.momentum * bias_velocity if config.nesterov else bias_velocity)
    return weights.transpose(0, 1), bias


def _schedule_factor(config: LinearConfig, epoch: float) -> float:
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.schedule is Schedule.step:
        return 0.1 ** (epoch // config.step_epochs)
    done = (epoch - config.warmup_epochs) / max(1e-9, config.epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
