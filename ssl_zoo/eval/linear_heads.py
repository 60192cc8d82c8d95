"""Stacked linear classifiers on streamed features, with the gradient of the cross-entropy written out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ssl_zoo.eval.heads import FeatureKind, Heads
from ssl_zoo.eval.logistic import Preprocessing, preprocessed
from ssl_zoo.eval.streaming import sum_in_place
from ssl_zoo.seeding import generator_for


@dataclass(frozen=True)
class LinearKind(FeatureKind):
    """Which feature of an image a linear classifier gets, and what is done to it before."""

    preprocessing: Preprocessing


class LinearHeads(Heads):
    """Linear classifiers; two batched matmuls per kind of feature compute the gradients of all its heads.

    Args:
        dims: width of each kind's features.
        num_rates: heads of each kind, which start from the same weights.
        generator: samples the weights of each kind.
    """

    def __init__(self, kinds: Sequence[LinearKind], dims: Sequence[int], num_rates: int, num_classes: int, seed: int):
        super().__init__()
        self.kinds = kinds
        self.weights, self.biases, self.norms = nn.ParameterList(), nn.ParameterList(), nn.ModuleList()
        for kind, dim in zip(kinds, dims, strict=True):
            weights = 0.01 * torch.randn(dim, num_classes, generator=generator_for(seed, "linear"))
            self.weights.append(nn.Parameter(weights.expand(num_rates, -1, -1).contiguous()))
            self.biases.append(nn.Parameter(torch.zeros(num_rates, num_classes)))
            standardizes = kind.preprocessing is Preprocessing.standardize
            self.norms.append(StreamedStandardization(dim) if standardizes else nn.Identity())

    @torch.no_grad()
    def logits(self, features: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "heads B classes"]:
        values = [self._prepared(number, of_kind) for number, of_kind in enumerate(features)]
        return torch.cat([self._logits(number, of_kind) for number, of_kind in enumerate(values)])

    @torch.no_grad()
    def backward(self, features: Sequence[Float[Tensor, "b D"]], labels: Int[Tensor, "b"], batch_size: int) -> None:
        for number, of_kind in enumerate(features):
            weights, bias = self.weights[number], self.biases[number]
            values = self._prepared(number, of_kind, batch_size)
            targets = one_hot(labels, bias.shape[1]).to(values.dtype)
            error = self._logits(number, values).softmax(dim=-1).sub_(targets).div_(batch_size)
            weights.grad = torch.bmm(values.T.expand(len(weights), -1, -1), error)
            bias.grad = error.sum(dim=1)

    def _logits(self, number: int, values: Float[Tensor, "B D"]) -> Float[Tensor, "H B classes"]:
        weights = self.weights[number]
        return torch.baddbmm(self.biases[number][:, None], values.expand(len(weights), -1, -1), weights)

    def _prepared(
        self, number: int, values: Float[Tensor, "B D"], batch_size: int | None = None
    ) -> Float[Tensor, "B D"]:
        kind = self.kinds[number]
        if kind.preprocessing is Preprocessing.standardize:
            return self.norms[number](values, batch_size)
        return preprocessed(values, values[:0], kind.preprocessing)[0]


class StreamedStandardization(nn.Module):
    """Batch norm without scale and offset: the batch of all ranks in training, the mean statistics in evaluation.

    Differs from the reference: statistics are averaged over all steps, not exponentially, since frozen features have
    the same distribution in all of them.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Float[Tensor, "b D"], batch_size: int | None) -> Float[Tensor, "b D"]:
        """Standardize each dimension.

        Args:
            batch_size: rows of all ranks in training; None in evaluation.
        """
        if batch_size is None:
            return (values - self.mean) * (self.variance + self.eps).rsqrt()
        mean = values.sum(dim=0) / batch_size
        sum_in_place([mean])
        centered = values - mean
        variance = centered.square().sum(dim=0) / batch_size
        sum_in_place([variance])
        self.num_batches += 1
        self.mean.lerp_(mean, 1 / self.num_batches.to(mean.dtype))
        # Of the mixture of all batches it would be this plus the variance of their means, about 1 / batch_size of it.
        self.variance.lerp_(variance, 1 / self.num_batches.to(mean.dtype))
        return centered * (variance + self.eps).rsqrt()
