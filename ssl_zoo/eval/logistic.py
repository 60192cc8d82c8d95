"""Multinomial logistic regression on frozen features, solved to the optimum."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig, accuracy, check_classification
from ssl_zoo.eval.features import Features
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

logger = logging.getLogger(__name__)


class Preprocessing(Enum):
    """Preprocessing of features before the classifier."""

    standardize = "standardize"  # each dimension to mean 0, standard deviation 1 over the train images
    unit_length = "unit_length"  # each feature to length 1 (DINO, iBOT low-shot)
    centered_unit_length = "centered_unit_length"  # each feature minus its own mean, then to length 1 (MSN low-shot)
    none = "none"


@dataclass
class LogisticConfig(EvaluatorConfig):
    """Logistic regression; minimises the sum of cross-entropies + regularization / 2 * squared norm of weights."""

    preprocessing: Preprocessing = setting(Preprocessing.standardize, "preprocessing of the features")
    regularization: float = setting(1.0, "1 / C of scikit-learn; n * lambda for a loss averaged over n images", above=0)
    intercept: bool = setting(True, "fit an unregularized bias per class")
    max_iterations: int = setting(1000, "limit of L-BFGS iterations; reaching it is logged", at_least=1)
    tolerance: float = setting(1e-6, "stop when no entry of the mean loss's gradient is larger", above=0)


@EVALUATORS.register("logistic", LogisticConfig)
class Logistic(Evaluator):
    """Multinomial logistic regression on frozen features: convex, so it needs neither seed nor learning rate."""

    config: LogisticConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        train, test = model.features(self.config)
        predictions = logistic_predictions(train, test, self.config, device=model.device)
        return [Score("logistic", accuracy(predictions, test.labels), self.protocol(model))]


def logistic_predictions(
    train: Features, test: Features, config: LogisticConfig, *, device: torch.device | str = "cpu"
) -> Int[Tensor, "n"]:
    """Predict the class of every test image."""
    check_classification("logistic", train, test)
    device = float64_device(device)
    values = [features.values.to(device).double() for features in (train, test)]
    train_values, test_values = preprocessed(*values, config.preprocessing)
    weights, intercept = fit(train_values, train.labels.to(device), config)
    return (test_values @ weights + intercept).argmax(dim=1).cpu()


def preprocessed(
    train: Float[Tensor, "n D"], test: Float[Tensor, "m D"], preprocessing: Preprocessing
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "m D"]]:
    """Transform both sets of features with statistics of the train set alone."""
    if preprocessing is Preprocessing.none:
        return train, test
    if preprocessing is Preprocessing.standardize:
        mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0).clamp_min(1e-6)
        return (train - mean) / deviation, (test - mean) / deviation
    if preprocessing is Preprocessing.centered_unit_length:
        train, test = train - train.mean(dim=1, keepdim=True), test - test.mean(dim=1, keepdim=True)
    return normalize(train, dim=1), normalize(test, dim=1)


@torch.enable_grad()
def fit(
    features: Float[Tensor, "n D"], labels: Int[Tensor, "n"], config: LogisticConfig
) -> tuple[Float[Tensor, "D classes"], Float[Tensor, "classes"]]:
    """Return weights and intercept at the optimum.

    L-BFGS with a strong Wolfe line search starts at zero and minimises the mean loss in float64. Classes are 0 to the
    largest label; those without train images are never predicted.
    """
    num_rows, num_classes = len(features), int(labels.max()) + 1
    weights = features.new_zeros(features.shape[1], num_classes, requires_grad=True)
    intercept = features.new_zeros(num_classes, requires_grad=config.intercept)
    absent = torch.ones(num_classes, dtype=torch.bool, device=labels.device).index_fill_(0, labels.unique(), False)
    offset = torch.zeros_like(intercept, requires_grad=False).masked_fill(absent, -torch.inf)
    parameters = [weights, intercept] if config.intercept else [weights]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=config.max_iterations,
        max_eval=2 * config.max_iterations,
        tolerance_grad=config.tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(features @ weights + (intercept + offset), labels)
        value = value + config.regularization / (2 * num_rows) * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    largest = max(float(parameter.grad.abs().max()) for parameter in parameters)
    if largest > config.tolerance:
        limits = config.key("tolerance"), config.tolerance, config.key("max_iterations"), config.max_iterations
        logger.warning("logistic regression stopped at gradient %.1e > %s=%g; raise %s=%d", largest, *limits)
    return weights.detach(), (intercept + offset).detach()
