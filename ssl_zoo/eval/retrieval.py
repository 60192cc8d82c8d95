"""Image retrieval: mean average precision of rankings by cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig, check_labels
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import Features
from ssl_zoo.eval.ranks import rank_and_size, sum_over_ranks
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

_BLOCK_BYTES = 64 << 20  # of float64 similarities of the queries that are ranked at once
_GALLERY_PER_BLOCK = 8192  # images whose features are converted to float64 at once
_TIE = 2.0**-40  # similarities are rounded to multiples, far above rounding errors of sums


class Gallery(Enum):
    """Which images are ranked for a query, an image of the test split."""

    test = "test"  # all others of the test split: leave-one-out
    train = "train"  # those of the train split


@dataclass
class RetrievalConfig(EvaluatorConfig):
    """Retrieval of images of the query's class."""

    gallery: Gallery = setting(Gallery.test, "test: all other test images (leave-one-out); train: the train images")


@EVALUATORS.register("retrieval", RetrievalConfig)
class Retrieval(Evaluator):
    """Mean average precision of images ranked by cosine similarity to each test image; no training."""

    config: RetrievalConfig

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        if self.config.gallery is Gallery.train:
            return super().obstacle(train, test)
        if test.labels is None:
            return super().obstacle(test, test)
        if test.labels[test.index].unique(return_counts=True)[1].max() < 2:
            return "no two test images are of one class; raise probe.test_samples or use probe.retrieval.gallery=train"
        return None

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        queries = model.test_features(self.config)
        is_leave_one_out = self.config.gallery is Gallery.test
        gallery = queries if is_leave_one_out else model.features(self.config)[0]
        precisions, has_relevant = average_precisions(
            queries, gallery, is_leave_one_out=is_leave_one_out, device=model.device
        )
        if not has_relevant.any():
            raise CannotEvaluate("retrieval: no query has an image of its class in the gallery; use more images")
        details = {"queries": int(has_relevant.sum()), "without_relevant_image": int((~has_relevant).sum())}
        return [Score("retrieval_map", precisions[has_relevant].mean().item(), self.protocol(model), details=details)]

    def cost(self, workload: Workload) -> Cost:
        dim, queries = self.feature_width(workload.encoder), workload.num_test
        is_leave_one_out = self.config.gallery is Gallery.test
        num_images = queries if is_leave_one_out else workload.num_images
        gallery = queries if is_leave_one_out else workload.num_train
        how = f"2 x {gallery:,} x {queries:,} x {dim:,} FLOPs, and sorting, which is not counted"
        flops = 2.0 * gallery * queries * dim / workload.world_size
        return Cost(4 * dim * num_images + 8 * _BLOCK_BYTES, num_images, flops, how)


def average_precisions(
    queries: Features, gallery: Features, *, is_leave_one_out: bool, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Return the average precision of every query, and whether the gallery has an image of its class.

    It is the mean, over the relevant images, of the precision among all images that are at least as similar. Images of
    equal similarity (to 2^-40) share one rank, so that the order of the data does not matter; scikit-learn's
    ``average_precision_score`` has the same definition. Besides the features, memory holds about 500 MB for a block of
    rankings. Each rank of a process group ranks a part of the queries, and all of them return the same.

    Args:
        is_leave_one_out: the gallery is the queries, and a query is left out of its own ranking.
    """
    for name, features in (("query", queries), ("gallery", gallery)):
        if features.values.ndim != 2:
            raise ValueError(
                f"retrieval: {name} features have shape {tuple(features.values.shape)}, but one vector per image is "
                f"needed; use another pooling than tokens"
            )
    check_labels("retrieval", gallery, queries)
    device = float64_device(device)
    rank, world_size = rank_and_size()
    bank, labels = gallery.values.to(device), gallery.labels.to(device)
    found = torch.zeros(2, len(queries.values), dtype=torch.float64, device=device)
    per_block = max(1, _BLOCK_BYTES // (8 * len(bank)))
    for rows in torch.arange(len(queries.values)).split(per_block)[rank::world_size]:
        similarity = _similarity(queries.values[rows].to(device), bank)
        is_relevant = queries.labels[rows].to(device)[:, None] == labels
        if is_leave_one_out:
            itself = torch.arange(len(rows), device=device), rows.to(device)
            similarity[itself], is_relevant[itself] = -torch.inf, False
        found[0, rows], found[1, rows] = _of_rankings(similarity, is_relevant), is_relevant.any(dim=1).double()
    [found] = sum_over_ranks(found)  # of different queries: no rounding
    return found[0].cpu(), found[1].cpu() > 0


def _similarity(queries: Float[Tensor, "Q D"], bank: Float[Tensor, "n D"]) -> Float[Tensor, "Q n"]:
    unit = normalize(queries.double(), dim=1)
    blocks = [unit @ normalize(rows.double(), dim=1).T for rows in bank.split(_GALLERY_PER_BLOCK)]
    return torch.cat(blocks, dim=1).div_(_TIE).round_()


def _of_rankings(similarity: Float[Tensor, "Q n"], is_relevant: Bool[Tensor, "Q n"]) -> Float[Tensor, "Q"]:
    """Return the average precision of each row; 0 where nothing is relevant."""
    ranked, order = similarity.sort(dim=1, descending=True)
    relevant = is_relevant.gather(1, order)
    number = torch.arange(ranked.shape[1], device=ranked.device)
    is_last = torch.ones_like(relevant)  # of the images of equal similarity
    is_last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    last: Int[Tensor, "Q n"] = torch.where(is_last, number, len(number)).flip(1).cummin(dim=1).values.flip(1)
    precision = relevant.cumsum(dim=1).gather(1, last).double() / (last + 1)
    return (precision * relevant).sum(dim=1) / relevant.sum(dim=1).clamp(min=1)
