"""Multinomial logistic regression on frozen features, solved to the optimum."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig, accuracy, check_classification
from ssl_zoo.eval.cost import OBJECTIVE_CALLS, Cost, Workload
from ssl_zoo.eval.shards import Features, FeatureShard, as_shard
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

logger = logging.getLogger(__name__)

_HISTORY = 100  # pairs of vectors that L-BFGS keeps


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
        train, test = model.shards(self.config)
        predictions = logistic_predictions(train, test, self.config, device=model.device)
        return [Score("logistic", accuracy(predictions, test.labels), self.protocol(model))]

    def cost(self, workload: Workload) -> Cost:
        dim, num_rows = self.feature_width(workload.encoder), workload.num_train
        solver = working_bytes(workload.batch_size, dim, workload.num_classes)
        held = max(workload.extraction_bytes(dim), workload.part_bytes(dim) + solver)
        flops, how = objective_flops(self.config, num_rows, dim, workload.num_classes)
        return Cost(held, workload.num_images, flops / workload.world_size, how)


def objective_flops(config: LogisticConfig, num_rows: int, dim: int, num_classes: int) -> tuple[float, str]:
    """Return the FLOPs of a fit, from an assumed number of iterations, and how they are counted."""
    calls = min(OBJECTIVE_CALLS, config.max_iterations)
    how = f"{calls} calls (assumed) x 4 x {num_rows:,} x {dim:,} x {num_classes:,} FLOPs in float64"
    return 4.0 * calls * num_rows * dim * num_classes, how


def logistic_predictions(
    train: Features | FeatureShard,
    test: Features | FeatureShard,
    config: LogisticConfig,
    *,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "n"]:
    """Predict the class of every test image; of classes with equal logits the lowest.

    Features in parts stay with their ranks, and predictions do not depend on the number of ranks. Memory holds
    ``working_bytes`` besides the features, and on another device than the CPU a copy of this rank's.

    Raises:
        ValueError: ``check_classification`` refuses the features.
    """
    train, test = as_shard(train), as_shard(test)
    check_classification("logistic", train, test)
    device = torch.device(float64_device(device))
    transform = Transform.of(train, config.preprocessing, device)
    weights, intercept = fit(train, transform, config)
    parts = [(transform(values) @ weights + intercept).argmax(dim=1).cpu() for _, values in test.batches()]
    return test.gather(torch.cat([torch.empty(0, dtype=torch.int64), *parts]))


@dataclass(frozen=True)
class Transform:
    """Preprocessing of a batch of features to float64 on a device, with statistics of the train features alone.

    Attributes:
        mean, deviation: of each dimension; None without standardization.
    """

    preprocessing: Preprocessing
    device: torch.device
    mean: Float[Tensor, "D"] | None = None
    deviation: Float[Tensor, "D"] | None = None

    @classmethod
    def of(cls, train: FeatureShard, preprocessing: Preprocessing, device: torch.device) -> "Transform":
        if preprocessing is not Preprocessing.standardize:
            return cls(preprocessing, device)
        return cls(preprocessing, device, *(tensor.to(device) for tensor in column_statistics(train)))

    def __call__(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        values = values.to(self.device).double()  # a copy, which is changed in place
        if self.preprocessing is Preprocessing.standardize:
            return values.sub_(self.mean).div_(self.deviation)
        if self.preprocessing is Preprocessing.none:
            return values
        if self.preprocessing is Preprocessing.centered_unit_length:
            values.sub_(values.mean(dim=1, keepdim=True))
        return normalize(values, dim=1, out=values)

    def limits(self, train: FeatureShard) -> Float[Tensor, "D"]:
        """Return an upper limit of the root mean square of every preprocessed dimension."""
        if self.preprocessing is Preprocessing.none:
            return largest_values(train).to(self.device)
        return torch.ones(train.values.shape[1], dtype=torch.float64, device=self.device)


def column_statistics(train: FeatureShard) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
    """Return mean and standard deviation, at least 1e-6, of each dimension over the images of all ranks, in float64."""
    num_images, largest = train.num_images, largest_values(train)
    sums = (values.double().sum(dim=0) for _, values in train.batches())
    mean = train.total(torch.zeros_like(largest), sums, num_images * largest) / num_images
    squares = ((values.double() - mean).square_().sum(dim=0) for _, values in train.batches())
    variance = train.total(torch.zeros_like(largest), squares, num_images * (2 * largest).square()) / num_images
    return mean, variance.sqrt().clamp_min(1e-6)


def largest_values(train: FeatureShard) -> Float[Tensor, "D"]:
    """Return the largest absolute value of each dimension over the images of all ranks, in float64."""
    largest = torch.zeros(train.values.shape[1], dtype=torch.float64)
    for _, values in train.batches():
        if len(values):
            largest = largest.maximum(values.abs().amax(dim=0))
    return train.largest(largest)


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


def fit(
    train: FeatureShard, transform: Transform, config: LogisticConfig
) -> tuple[Float[Tensor, "D classes"], Float[Tensor, "classes"]]:
    """Return weights and intercept at the optimum, the same on every rank.

    L-BFGS with a strong Wolfe line search starts at zero and minimises the mean loss in float64. Batches are converted
    to float64 one after another, and the loss and its gradient are summed over batches and ranks to the same bits
    however batches are divided, so that all ranks take the same steps. Classes are 0 to the largest label; those
    without train images are never predicted.
    """
    objective = _Objective.of(train, transform, config)
    solver = torch.optim.LBFGS(
        objective.parameters,
        max_iter=config.max_iterations,
        max_eval=2 * config.max_iterations,
        tolerance_grad=config.tolerance,
        tolerance_change=0.0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    solver.step(objective)
    largest = max(float(parameter.grad.abs().max()) for parameter in objective.parameters)
    if largest > config.tolerance:
        limits = config.key("tolerance"), config.tolerance, config.key("max_iterations"), config.max_iterations
        logger.warning("logistic regression stopped at gradient %.1e > %s=%g; raise %s=%d", largest, *limits)
    return objective.weights, objective.intercept + objective.offset


@dataclass(frozen=True)
class _Objective:
    """The regularized mean loss as L-BFGS calls it; its gradient, in closed form, goes to ``parameters``.

    Attributes:
        train: with its values on the device.
        labels: of this rank's rows.
        offset: 0, or minus infinity for classes without train images.
        bound: limit of the absolute sum over images of each weight's gradients, the intercept's last.
    """

    train: FeatureShard
    transform: Transform
    config: LogisticConfig
    labels: Int[Tensor, "m"]
    weights: Float[Tensor, "D classes"]
    intercept: Float[Tensor, "classes"]
    offset: Float[Tensor, "classes"]
    bound: Float[Tensor, "D+1 1"]

    @classmethod
    def of(cls, train: FeatureShard, transform: Transform, config: LogisticConfig) -> "_Objective":
        num_classes, device = int(train.labels.max()) + 1, transform.device
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        absent = torch.ones(num_classes, dtype=torch.bool).index_fill_(0, train.labels.unique(), False)
        offset = zeros(num_classes).masked_fill_(absent.to(device), -torch.inf)
        limits = transform.limits(train)
        bound = train.num_images * torch.cat([limits, limits.new_ones(1)])[:, None]  # by the Cauchy-Schwarz inequality
        labels = train.labels[train.rows].to(device)
        on_device = replace(train, values=train.values.to(device))
        weights = zeros(train.values.shape[1], num_classes)
        return cls(on_device, transform, config, labels, weights, zeros(num_classes), offset, bound)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.weights, self.intercept] if self.config.intercept else [self.weights]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        num_rows, strength = self.train.num_images, self.config.regularization
        losses = self.weights.new_zeros(len(self.train.batch_sizes))
        shape = self.weights.shape[0] + 1, self.weights.shape[1]
        gradient = self.train.total(self.weights.new_zeros(shape), self._gradients(losses), self.bound)
        loss = self.train.add_entries(losses).sum() / num_rows
        loss += strength / (2 * num_rows) * self.weights.square().sum()
        self.weights.grad = gradient[:-1].div_(num_rows).add_(self.weights, alpha=strength / num_rows)
        self.intercept.grad = gradient[-1] / num_rows
        return loss

    def _gradients(self, losses: Float[Tensor, "batches"]) -> Iterator[Float[Tensor, "D+1 classes"]]:
        """Yield the gradient of each batch's summed loss, the intercept's last, and store that loss in ``losses``."""
        labels = iter(self.labels.split([len(values) for _, values in self.train.batches()]))
        for number, values in self.train.batches():
            batch, rows = self.transform(values), next(labels)[:, None]
            logits = (batch @ self.weights).add_(self.intercept + self.offset)
            log_sums = logits.logsumexp(dim=1, keepdim=True)
            losses[number] = (log_sums - logits.gather(1, rows)).sum()
            error = logits.sub_(log_sums).exp_()
            error.scatter_add_(1, rows, torch.full_like(log_sums, -1.0))
            yield torch.cat([batch.T @ error, error.sum(dim=0, keepdim=True)])


def working_bytes(batch_size: int, dim: int, num_classes: int) -> int:
    """Return about how many bytes a fit takes besides the features: the history of L-BFGS and one batch."""
    return 8 * ((2 * _HISTORY + 12) * (dim + 1) * num_classes + batch_size * (dim + 3 * num_classes))
