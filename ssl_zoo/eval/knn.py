"""Weighted k-nearest-neighbour classification by cosine similarity (DINO, arXiv 2104.14294, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ssl_zoo.eval.base import (
    EVALUATORS,
    CannotEvaluate,
    EvaluatedModel,
    Evaluator,
    EvaluatorConfig,
    accuracy,
    check_classification,
)
from ssl_zoo.eval.features import Features
from ssl_zoo.eval.logistic import Preprocessing, preprocessed
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

# One block of similarities: 1,024 x 8,192 float64 = 64 MiB, independent of the number of images.
_QUERIES_PER_BLOCK = 1024
_BANK_PER_BLOCK = 8192


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
        train, test = model.features(self.config)
        by_k = zip(self.config.k, knn_predictions(train, test, self.config, device=model.device), strict=True)
        return [Score(f"knn{k}", accuracy(predicted, test.labels), self.protocol(model, k=k)) for k, predicted in by_k]


def knn_predictions(
    train: Features, test: Features, config: KNNConfig, *, device: torch.device | str = "cpu"
) -> Int[Tensor, "num_k n"]:
    """Predict the class of every test image for every k of ``config``.

    Of neighbours with equal similarity the first train image wins, of classes with equal votes the lower one. Besides
    the features, memory holds about 24 D bytes per train image and 200 MB for one block of similarities.

    Raises:
        ValueError: fewer train images than neighbours, or ``check_classification`` refuses the features.
    """
    check_classification("knn", train, test)
    if too_few := _too_few(len(train.values), config):
        raise CannotEvaluate(too_few)
    max_k = max(config.k)
    device = float64_device(device)
    bank, queries = train.values.to(device), test.values.to(device)
    if config.standardize:
        bank, queries = preprocessed(bank, queries, Preprocessing.standardize)
    bank = normalize(bank.double(), dim=1)
    labels = train.labels.to(device)
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    predictions = []
    for block in queries.split(_QUERIES_PER_BLOCK):
        similarity, neighbours = nearest_rows(normalize(block.double(), dim=1), bank, max_k)
        weights = ((similarity - similarity[:, :1]) / config.temperature).exp()  # common factor: the same argmax
        votes = labels[neighbours]
        predictions.append(torch.stack([_winner(weights[:, :k], votes[:, :k], num_classes) for k in config.k]))
    return torch.cat(predictions, dim=1).cpu()


def _too_few(num_train: int, config: KNNConfig) -> str | None:
    if num_train >= max(config.k):
        return None
    key = config.key("k")
    return f"{key}={config.k} on {num_train} train images: lower {key} or raise probe.train_samples"


def nearest_rows(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "n D"], k: int
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Return similarities and indices of the k rows of ``bank`` with the largest dot products, the largest first.

    Order and the choice among ties must not depend on the block size or the device, yet ``topk`` guarantees nothing
    about ties. So similarities are rounded to a grid (2^-36 for 50,000 rows) that is far above rounding errors and far
    below differences between images, and the row index is subtracted in the bits below the grid. Each key then encodes
    similarity and row, and no two keys are equal. Similarity s in -1..1 and row i give the integer s * 2^52 - i, which
    is exact in float64.

    Args:
        queries, bank: unit rows in float64.
    """
    row_bits = max(len(bank) - 1, 1).bit_length()
    scaled = queries * 2.0 ** (52 - row_bits)  # a power of two: no rounding
    best: Tensor | None = None
    for start in range(0, len(bank), _BANK_PER_BLOCK):
        rows = bank[start : start + _BANK_PER_BLOCK]
        indices = torch.arange(start, start + len(rows), device=bank.device, dtype=torch.float64)
        keys = (scaled @ rows.T).round_().sub_(indices * 2.0**-row_bits)
        block_best = keys.topk(min(k, len(rows)), dim=1).values
        best = block_best if best is None else torch.cat([best, block_best], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    similarity = best.ceil()
    rows = ((similarity - best) * 2.0**row_bits).long()
    return similarity * 2.0 ** (row_bits - 52), rows


def _winner(weights: Float[Tensor, "Q k"], labels: Int[Tensor, "Q k"], num_classes: int) -> Int[Tensor, "Q"]:
    votes = torch.zeros(len(weights), num_classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
