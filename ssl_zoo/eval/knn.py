"""Weighted k-nearest-neighbour classification by cosine similarity (DINO, arXiv 2104.14294, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject, accuracy, check_classification
from ssl_zoo.eval.features import Features
from ssl_zoo.settings import setting

# One block of similarities: 1,024 x 8,192 float64 = 64 MiB, whatever the number of images.
_QUERIES_PER_BLOCK = 1024
_BANK_PER_BLOCK = 8192


@dataclass
class KNNConfig(EvaluatorConfig):
    """Weighted k-nearest neighbours; the paper's best k is 20, on ImageNet."""

    k: list[int] = setting([20], "numbers of neighbours, one score each")
    temperature: float = setting(0.07, "a neighbour of cosine similarity s votes with weight exp(s / temperature)")
    standardize: bool = setting(False, "shift and scale each dimension by the train features' mean and deviation first")

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ValueError(f"knn.k={self.k}: give one or more numbers of neighbours, each at least 1")
        if self.temperature <= 0:
            raise ValueError(f"knn.temperature={self.temperature} must be positive")


@EVALUATORS.register("knn", KNNConfig)
class KNN(Evaluator):
    """Weighted k-nearest neighbours on frozen features: no training, one score per k."""

    config: KNNConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        train, test = subject.features(self.config)
        predictions = knn_predictions(train, test, self.config, device=subject.device)
        return [
            Score(f"knn{k}", accuracy(predicted, test.labels), self.protocol(subject, k=k))
            for k, predicted in zip(self.config.k, predictions, strict=True)
        ]


def knn_predictions(
    train: Features, test: Features, config: KNNConfig, *, device: torch.device | str = "cpu"
) -> Int[Tensor, "num_k n"]:
    """The predicted class of every test image for every k of ``config``.

    Equal similarities go to the neighbour that comes first among the train images, equal votes to the lower class.
    Memory beside the features: some 24 D bytes per train image, and about 200 MB for one block of similarities.

    Raises:
        ValueError: fewer train images than neighbours, or as told by ``check_classification``.
    """
    check_classification("knn", train, test)
    most = max(config.k)
    if len(train.values) < most:
        raise ValueError(
            f"knn.k={config.k} on {len(train.values)} train images: lower knn.k or raise probe.train_samples"
        )
    bank, queries = train.values.to(device), test.values.to(device)
    if config.standardize:
        mean, deviation = bank.mean(dim=0), bank.std(dim=0, correction=0).clamp_min(1e-6)
        bank, queries = (bank - mean) / deviation, (queries - mean) / deviation
    bank = normalize(bank.double(), dim=1)
    labels = train.labels.to(device)
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    predictions = []
    for block in queries.split(_QUERIES_PER_BLOCK):
        similarity, neighbours = nearest_rows(normalize(block.double(), dim=1), bank, most)
        weights = ((similarity - similarity[:, :1]) / config.temperature).exp()  # common factor: the argmax is the same
        predictions.append(
            torch.stack([_vote(weights[:, :k], labels[neighbours[:, :k]], num_classes) for k in config.k])
        )
    return torch.cat(predictions, dim=1).cpu()


def nearest_rows(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "n D"], count: int
) -> tuple[Float[Tensor, "Q count"], Int[Tensor, "Q count"]]:
    """Similarities and numbers of the ``count`` rows of ``bank`` with the largest products, the largest first.

    Order and choice among equals must not depend on the block size or the device, yet ``topk`` promises nothing about
    ties. So similarities are rounded to a grid (2^-36 for 50,000 rows) that is far above rounding errors and far below
    differences between images, and a row's number is subtracted in the bits below the grid: no two keys are equal,
    and a key holds similarity and row. Similarity s in -1..1 and row i make the integer s * 2^52 - i, exact in float64.

    Args:
        queries, bank: unit rows in float64.
    """
    row_bits = max(len(bank) - 1, 1).bit_length()
    scaled = queries * 2.0 ** (52 - row_bits)  # a power of two: no rounding
    best: Tensor | None = None
    for start in range(0, len(bank), _BANK_PER_BLOCK):
        rows = bank[start : start + _BANK_PER_BLOCK]
        numbers = torch.arange(start, start + len(rows), device=bank.device, dtype=torch.float64)
        keys = (scaled @ rows.T).round_().sub_(numbers * 2.0**-row_bits)
        block_best = keys.topk(min(count, len(rows)), dim=1).values
        best = block_best if best is None else torch.cat([best, block_best], dim=1)
        best = best.topk(min(count, best.shape[1]), dim=1).values
    similarity = best.ceil()
    rows = ((similarity - best) * 2.0**row_bits).long()
    return similarity * 2.0 ** (row_bits - 52), rows


def _vote(weights: Float[Tensor, "Q k"], labels: Int[Tensor, "Q k"], num_classes: int) -> Int[Tensor, "Q"]:
    votes = torch.zeros(len(weights), num_classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
