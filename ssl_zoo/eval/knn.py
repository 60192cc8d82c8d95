"""Weighted k-nearest-neighbour classification by cosine similarity (DINO, arXiv 2104.14294, section 4.1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ssl_zoo.eval.base import (
    EVALUATORS,
    CannotEvaluate,
    EvaluatedModel,
    Evaluator,
    EvaluatorConfig,
    accuracy,
    check_classification,
)
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.logistic import column_statistics
from ssl_zoo.eval.nearest import QUERIES_AT_ONCE, UnitRows, decode, nearest_keys, working_bytes
from ssl_zoo.eval.ranks import gather_equal
from ssl_zoo.eval.shards import Features, FeatureShard, as_shard
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

_BYTES_PER_ROW = 40  # labels, sample ids, owners and row numbers of the bank


@dataclass
class KNNConfig(EvaluatorConfig):
    """Weighted k-nearest neighbours; the paper's best k is 20, on ImageNet."""

    k: list[int] = setting([20], "numbers of neighbours, one score for each", at_least=1)
    temperature: float = setting(0.07, "a neighbour of cosine similarity s has weight exp(s / temperature)", above=0)
    standardize: bool = setting(False, "first standardize each dimension over the train features")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k:
            raise ValueError(f"{self.key('k')}=[] must have at least one number of neighbours")


@EVALUATORS.register("knn", KNNConfig)
class KNN(Evaluator):
    """Weighted k-nearest neighbours on frozen features: no training, one score per k."""

    config: KNNConfig

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        return super().obstacle(train, test) or _too_few(train.num_images, self.config)

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        train, test = model.shards(self.config)
        by_k = zip(self.config.k, knn_predictions(train, test, self.config, device=model.device), strict=True)
        return [Score(f"knn{k}", accuracy(predicted, test.labels), self.protocol(model, k=k)) for k, predicted in by_k]

    def cost(self, workload: Workload) -> Cost:
        dim, num_train, num_test = self.feature_width(workload.encoder), workload.num_train, workload.num_test
        search = working_bytes(num_test, dim, max(self.config.k))
        search += 4 * dim * num_test + _BYTES_PER_ROW * num_train
        held = max(workload.extraction_bytes(dim), workload.part_bytes(dim) + search)
        how = f"2 x {num_train:,} x {num_test:,} x {dim:,} FLOPs in float32"
        return Cost(held, workload.num_images, 2.0 * num_train * num_test * dim / workload.world_size, how)


def knn_predictions(
    train: Features | FeatureShard,
    test: Features | FeatureShard,
    config: KNNConfig,
    *,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "num_k n"]:
    """Predict the class of every test image for every k of ``config``.

    Of neighbours with equal similarity the first train image wins, of classes with equal votes the lower one. Where
    train features are in parts, each rank searches its own and the nearest of all parts are merged; predictions do not
    depend on the number of ranks. Besides the features, which are not copied, memory holds the test features of all
    ranks, 40 bytes per train image, and ``nearest.working_bytes``.

    Raises:
        ValueError: fewer train images than neighbours, or ``check_classification`` refuses the features.
    """
    bank, test = as_shard(train), as_shard(test)
    check_classification("knn", bank, test)
    if too_few := _too_few(bank.num_images, config):
        raise CannotEvaluate(too_few)
    num_classes = int(max(bank.labels.max(), test.labels.max())) + 1
    predictions = []
    for similarity, neighbours in _nearest_of_blocks(bank, test, config, max(config.k), device):
        weights = ((similarity - similarity[:, :1]) / config.temperature).exp()  # common factor: the same argmax
        votes = bank.labels[neighbours]
        predictions.append(torch.stack([_winners(weights[:, :k], votes[:, :k], num_classes) for k in config.k]))
    return torch.cat(predictions, dim=1)


def nearest_neighbours(
    train: Features | FeatureShard,
    test: Features | FeatureShard,
    config: KNNConfig,
    k: int,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Return cosine similarities and rows of the ``k`` nearest train images of every test image, nearest first."""
    blocks = _nearest_of_blocks(as_shard(train), as_shard(test), config, k, device)
    similarity, rows = map(torch.cat, zip(*blocks, strict=True))
    return similarity, rows


def _nearest_of_blocks(
    bank: FeatureShard, test: FeatureShard, config: KNNConfig, k: int, device: torch.device | str
) -> Iterator[tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]]:
    device = torch.device(float64_device(device))
    statistics = column_statistics(bank) if config.standardize else None
    shift, scale = (None, None) if statistics is None else (tensor.float() for tensor in statistics)
    unit_bank = UnitRows(bank.values, device, shift, scale)
    for block in test.complete().values.split(QUERIES_AT_ONCE):
        keys = nearest_keys(UnitRows(block, device, shift, scale), unit_bank, bank.rows, bank.num_images, k)
        yield decode(_largest_of_ranks(keys.cpu(), bank, k), bank.num_images)


def _largest_of_ranks(keys: Float[Tensor, "Q m"], bank: FeatureShard, k: int) -> Float[Tensor, "Q k"]:
    """Return the k largest keys of all parts of a bank; a part may have fewer rows."""
    if bank.world_size == 1:
        return keys
    padded = pad(keys, (0, k - keys.shape[1]), value=-torch.inf)
    return torch.cat(gather_equal(padded), dim=1).topk(k, dim=1).values


def _too_few(num_train: int, config: KNNConfig) -> str | None:
    if num_train >= max(config.k):
        return None
    key = config.key("k")
    return f"{key}={config.k} on {num_train} train images: lower {key} or raise probe.train_samples"


def _winners(weights: Float[Tensor, "Q k"], labels: Int[Tensor, "Q k"], num_classes: int) -> Int[Tensor, "Q"]:
    """Return the class of the largest vote; on the CPU, where equal votes are summed in one order."""
    parts = []
    for weight, label in zip(weights.split(1024), labels.split(1024), strict=True):
        votes = torch.zeros(len(weight), num_classes, dtype=weight.dtype)
        parts.append(votes.scatter_add_(1, label, weight).argmax(dim=1))
    return torch.cat(parts)
