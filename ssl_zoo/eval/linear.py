"""Linear classifiers on frozen features, trained by gradient descent for a whole grid of settings at once.

Protocols: I-JEPA (arXiv 2301.08243, appendix A.2: LARS, step schedule, learning rates {0.01, 0.05, 0.001} x weight
decays {0.0005, 0}, the better of the last layer and the last four) and DINOv2 (arXiv 2304.07193: SGD, cosine schedule,
a grid of learning rates). Features are extracted once, so there is no augmentation.
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

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig, accuracy, check_classification
from ssl_zoo.eval.features import Features, Pooling
from ssl_zoo.eval.logistic import Preprocessing, preprocessed
from ssl_zoo.eval.subsets import take_rows, train_validation_rows
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

LARS_TRUST = 0.001
_STEP_EPOCHS = 15  # epochs between two tenfold drops of the step schedule


class Optimizer(Enum):
    """Optimizer of the classifiers, with momentum."""

    sgd = "sgd"
    lars = "lars"  # scales each update by the norm of the weights over that of their gradient, arXiv 1708.03888


class Schedule(Enum):
    """Learning-rate schedule."""

    cosine = "cosine"  # to zero
    step = "step"  # divided by 10 every 15 epochs


@dataclass
class LinearConfig(EvaluatorConfig):
    """Linear probe. The best settings on held-out train images are trained again on all train images."""

    poolings: list[Pooling] = setting([], "poolings to choose from; [] = pooling alone")
    layer_counts: list[int] = setting([], "values of num_layers to choose from; [] = num_layers alone", at_least=1)
    lrs: list[float] = setting(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "learning rates to choose from, per 256 images", above=0
    )
    weight_decays: list[float] = setting([0.0], "weight decays to choose from", at_least=0)
    optimizer: Optimizer = setting(Optimizer.sgd, "sgd or lars")
    schedule: Schedule = setting(Schedule.cosine, "cosine or step")
    momentum: float = setting(0.9, "momentum of the optimizer")
    epochs: int = setting(30, "training epochs", at_least=1)
    batch_size: int = setting(1024, "images per step", at_least=1)
    preprocessing: Preprocessing = setting(Preprocessing.standardize, "standardize: MAE's batch norm without affine")
    validation_fraction: float = setting(0.1, "fraction of train images that settings are chosen on", above=0, below=1)
    seed: int = setting(0, "seed of initial weights, order and held-out images")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lrs", "weight_decays"):
            if not getattr(self, name):
                raise ValueError(f"{self.key(name)}=[] must have at least one value")


@dataclass(frozen=True)
class Head:
    """A classifier of the grid and its settings."""

    pooling: Pooling
    num_layers: int
    lr: float
    weight_decay: float


@EVALUATORS.register("linear", LinearConfig)
class Linear(Evaluator):
    """Linear classifiers on frozen features by SGD or LARS; held-out images choose the best of a grid."""

    config: LinearConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        config, device = self.config, model.device
        # Deepest first: features of fewer layers are slices of those of more.
        depths = sorted(config.layer_counts or [config.num_layers], reverse=True)
        kinds = list(itertools.product(config.poolings or [config.pooling], depths))
        features = {kind: model.features(replace(config, pooling=kind[0], num_layers=kind[1])) for kind in kinds}
        for train, test in features.values():
            check_classification("linear", train, test)
        rates = list(itertools.product(config.lrs, config.weight_decays))
        heads = [Head(*kind, *rate) for kind in kinds for rate in rates]
        best, validation_accuracy = heads[0], None
        if len(heads) > 1:
            fitted, held_out = train_validation_rows(len(train.values), config.validation_fraction, config.seed)
            scores = [
                accuracy(predicted, train.labels[held_out])
                for train, _ in features.values()
                for predicted in linear_predictions(
                    take_rows(train, fitted), take_rows(train, held_out), rates, config, device=device
                )
            ]
            best, validation_accuracy = heads[scores.index(max(scores))], max(scores)
        train, test = features[best.pooling, best.num_layers]
        [predicted] = linear_predictions(train, test, [(best.lr, best.weight_decay)], config, device=device)
        chosen = {**asdict(best), "pooling": best.pooling.value}
        details = {"chosen": chosen, "validation_accuracy": validation_accuracy}
        return [Score("linear", accuracy(predicted, test.labels), self.protocol(model), details=details)]


def linear_predictions(
    train: Features,
    test: Features,
    rates: Sequence[tuple[float, float]],
    config: LinearConfig,
    *,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "H n"]:
    """Predict the class of every test image with one classifier per (learning rate, weight decay)."""
    values, queries = preprocessed(train.values.to(device), test.values.to(device), config.preprocessing)
    weights, bias = fit(values, train.labels.to(device), rates, config)
    return torch.stack([(queries @ w + b).argmax(dim=1) for w, b in zip(weights, bias, strict=True)]).cpu()


@torch.no_grad()
def fit(
    features: Float[Tensor, "n D"], labels: Int[Tensor, "n"], rates: Sequence[tuple[float, float]], config: LinearConfig
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
            velocity.mul_(config.momentum).add_(gradient)
            bias_velocity.mul_(config.momentum).add_(error.sum(dim=0))
            rate = lr * _schedule_factor(config, epoch + step / steps_per_epoch)
            weights -= rate * velocity
            bias -= rate * bias_velocity
    return weights.transpose(0, 1), bias


def _schedule_factor(config: LinearConfig, epoch: float) -> float:
    if config.schedule is Schedule.step:
        return 0.1 ** (epoch // _STEP_EPOCHS)
    return 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
