"""Linear classifiers on frozen features, trained by gradient descent: a grid of settings at once.

Protocols: I-JEPA (arXiv 2301.08243, appendix A.2: LARS, step schedule, learning rates {0.01, 0.05, 0.001} x weight
decays {0.0005, 0}, the better of the last layer and the last four) and DINOv2 (arXiv 2304.07193: SGD, cosine schedule,
a grid of learning rates). Features are extracted once, so images are seen without augmentation.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject, accuracy, check_classification
from ssl_zoo.eval.features import Features, Pooling
from ssl_zoo.eval.logistic import Preprocessing, preprocessed
from ssl_zoo.eval.splits import held_out, rows_of
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

LARS_TRUST = 0.001
_STEP_EPOCHS = 15  # between two tenfold drops of the step schedule


class Optimizer(Enum):
    """How a classifier's gradient becomes its step; both with momentum."""

    sgd = "sgd"
    lars = "lars"  # steps scaled by the norm of the weights over that of their gradient, arXiv 1708.03888


class Schedule(Enum):
    """Course of the learning rate."""

    cosine = "cosine"  # to zero
    step = "step"  # a tenth every 15 epochs


@dataclass
class LinearConfig(EvaluatorConfig):
    """Linear probe; of several settings the best on a held-out share of the train images is trained again on all."""

    poolings: list[Pooling] = setting([], "poolings to choose from; [] takes pooling alone")
    layer_counts: list[int] = setting([], "values of num_layers to choose from; [] takes num_layers alone")
    lrs: list[float] = setting([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "to choose from, per 256 images of a batch")
    weight_decays: list[float] = setting([0.0], "to choose from")
    optimizer: Optimizer = setting(Optimizer.sgd, "sgd or lars")
    schedule: Schedule = setting(Schedule.cosine, "cosine or step")
    momentum: float = setting(0.9, "of the optimizer")
    epochs: int = setting(30, "passes over the train images")
    batch_size: int = setting(1024, "images per step")
    preprocessing: Preprocessing = setting(
        Preprocessing.standardize, "of the features; standardize does what a batch norm without affine does (MAE)"
    )
    validation_fraction: float = setting(0.1, "share of the train images that settings are chosen by")
    seed: int = setting(0, "of initial weights, order and the held-out share")

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"linear.lrs={self.lrs}: give one or more, all positive")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise ValueError(f"linear.weight_decays={self.weight_decays}: give one or more, none negative")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"linear.validation_fraction={self.validation_fraction} must lie between 0 and 1")
        if self.layer_counts and min(self.layer_counts) < 1:
            raise ValueError(f"linear.layer_counts={self.layer_counts}: each needs at least 1")
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"linear.{key}={getattr(self, key)}: needs at least 1")


@dataclass(frozen=True)
class Head:
    """One setting of the grid."""

    pooling: Pooling
    num_layers: int
    lr: float
    weight_decay: float


@EVALUATORS.register("linear", LinearConfig)
class Linear(Evaluator):
    """Linear classifiers on frozen features by SGD or LARS, many settings in one pass, chosen on held-out images."""

    config: LinearConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        config, device = self.config, subject.device
        # Deepest first: features of fewer layers are columns of those of more.
        depths = sorted(config.layer_counts or [config.num_layers], reverse=True)
        kinds = list(itertools.product(config.poolings or [config.pooling], depths))
        features = {kind: subject.features(replace(config, pooling=kind[0], num_layers=kind[1])) for kind in kinds}
        for train, test in features.values():
            check_classification("linear", train, test)
        rates = list(itertools.product(config.lrs, config.weight_decays))
        heads = [Head(*kind, *rate) for kind in kinds for rate in rates]
        best, chosen_by = heads[0], None
        if len(heads) > 1:
            learned, judged = held_out(len(train.values), config.validation_fraction, config.seed)
            scores = [
                accuracy(predicted, train.labels[judged])
                for train, _ in features.values()
                for predicted in linear_predictions(
                    rows_of(train, learned), rows_of(train, judged), rates, config, device=device
                )
            ]
            best, chosen_by = heads[scores.index(max(scores))], max(scores)
        train, test = features[best.pooling, best.num_layers]
        [predicted] = linear_predictions(train, test, [(best.lr, best.weight_decay)], config, device=device)
        details = {"chosen": {**asdict(best), "pooling": best.pooling.value}, "validation_accuracy": chosen_by}
        return [Score("linear", accuracy(predicted, test.labels), self.protocol(subject), details=details)]


def linear_predictions(
    train: Features,
    test: Features,
    rates: Sequence[tuple[float, float]],
    config: LinearConfig,
    *,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "H n"]:
    """The predicted class of every test image by a classifier for each (learning rate, weight decay)."""
    values, queries = preprocessed(train.values.to(device), test.values.to(device), config.preprocessing)
    weights, bias = fit(values, train.labels.to(device), rates, config)
    return torch.stack([(queries @ w + b).argmax(dim=1) for w, b in zip(weights, bias, strict=True)]).cpu()


@torch.no_grad()
def fit(
    features: Float[Tensor, "n D"], labels: Int[Tensor, "n"], rates: Sequence[tuple[float, float]], config: LinearConfig
) -> tuple[Float[Tensor, "H D classes"], Float[Tensor, "H classes"]]:
    """Weights and biases of H classifiers that are trained on the same batches, each with its rates.

    The gradient of the cross-entropy is written down: one matrix product for the scores of all classifiers, one for
    their gradients.
    """
    (num_rows, dim), num_heads, num_classes = features.shape, len(rates), int(labels.max()) + 1
    generator = generator_for(config.seed, "linear")
    weights = 0.01 * torch.randn(dim, 1, num_classes, generator=generator).expand(-1, num_heads, -1)
    weights = weights.to(features.device).contiguous()
    bias = features.new_zeros(num_heads, num_classes)
    speed, bias_speed = torch.zeros_like(weights), torch.zeros_like(bias)
    batch_size = min(config.batch_size, num_rows)
    scale = batch_size / 256
    lr = features.new_tensor([scale * rate for rate, _ in rates])[:, None]
    decay = features.new_tensor([decay for _, decay in rates])[:, None]
    steps_per_epoch = math.ceil(num_rows / batch_size)
    expected = one_hot(labels, num_classes).to(features.dtype)
    for epoch in range(config.epochs):
        order = torch.randperm(num_rows, generator=generator).to(features.device)
        for step, rows in enumerate(order.split(batch_size)):
            batch = features[rows]
            scores = (batch @ weights.flatten(1)).view(len(rows), num_heads, num_classes) + bias
            error = (scores.softmax(dim=-1) - expected[rows, None]) / len(rows)
            slope = (batch.T @ error.flatten(1)).view_as(weights) + decay * weights
            if config.optimizer is Optimizer.lars:
                norm, slope_norm = weights.square().sum((0, 2)).sqrt(), slope.square().sum((0, 2)).sqrt()
                trust = torch.where((norm > 0) & (slope_norm > 0), LARS_TRUST * norm / slope_norm, 1.0)
                slope = slope * trust[:, None]
            speed.mul_(config.momentum).add_(slope)
            bias_speed.mul_(config.momentum).add_(error.sum(dim=0))
            rate = lr * _course(config, epoch + step / steps_per_epoch)
            weights -= rate * speed
            bias -= rate * bias_speed
    return weights.transpose(0, 1), bias


def _course(config: LinearConfig, epoch: float) -> float:
    if config.schedule is Schedule.step:
        return 0.1 ** (epoch // _STEP_EPOCHS)
    return 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
