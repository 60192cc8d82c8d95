"""Stacked attentive heads: in each, one learned query attends to all tokens of an image (CAE, arXiv 2202.03026)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from ssl_zoo.eval.heads import Heads
from ssl_zoo.eval.streaming import summed

_BATCH_NORM_MOMENTUM = 0.1  # torch's


class AttentiveHead(nn.Module):
    """H heads on tokens of one kind: layer norm, cross-attention of one query, batch norm without affine, linear layer.

    The first dimension of each parameter is the head. All heads start from the same weights.

    Args:
        num_heads: attention heads.
        num_stacked: H.
    """

    def __init__(self, dim: int, num_heads: int, num_classes: int, num_stacked: int = 1) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        attention = nn.MultiheadAttention(dim, num_heads)  # whose initialisation the heads have
        query, classes = torch.empty(1, dim), torch.empty(dim, num_classes)
        nn.init.trunc_normal_(query, std=0.02)
        nn.init.trunc_normal_(classes, std=0.01)

        def stacked(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.detach().expand(num_stacked, *value.shape).clone())

        ones, zeros = torch.ones(dim), torch.zeros(dim)
        self.query, self.query_scale, self.query_shift = stacked(query[0]), stacked(ones), stacked(zeros)
        self.norm_scale = stacked(ones)
        # Biases that can't change the output are left out, since AdamW would move them by their rounding errors: that
        # of keys adds a constant to all attention logits; the norm's and those of values and output add a constant to
        # the pooled token of every image, which the batch norm subtracts.
        query_weight, key_weight, value_weight = attention.in_proj_weight.unflatten(0, (3, num_heads, -1)).unbind()
        self.query_weight, self.key_weight, self.value_weight = map(stacked, (query_weight, key_weight, value_weight))
        self.query_bias = stacked(torch.zeros(num_heads, dim // num_heads))
        self.out_weight = stacked(attention.out_proj.weight)
        self.batch_norm = StackedBatchNorm(num_stacked, dim)
        self.class_weight, self.class_bias = stacked(classes), stacked(torch.zeros(num_classes))

    def forward(self, tokens: Float[Tensor, "B N D"], batch_size: int | None = None) -> Float[Tensor, "H B classes"]:
        """Compute the logits of images from their tokens.

        Args:
            batch_size: images of all ranks in training; None in evaluation.
        """
        pooled = self.batch_norm(self.pooled(layer_norm(tokens, tokens.shape[-1:])), batch_size)
        return torch.baddbmm(self.class_bias[:, None], pooled, self.class_weight)

    def pooled(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "H B D"]:
        """Compute ``attention(query, norm(tokens), norm(tokens))`` with two matmuls over all tokens for all heads.

        An attention logit is the dot product of a token with the query, multiplied by the transposed key weights. The
        value layer and the norm's scale are linear, so they are applied to the weighted mean of the tokens instead of
        to each token.

        Args:
            tokens: after a layer norm without scale and shift.
        """
        query = layer_norm(self.query, self.query.shape[-1:]) * self.query_scale + self.query_shift
        queries = (torch.einsum("hakd,hd->hak", self.query_weight, query) + self.query_bias) * self.scale
        directions = torch.einsum("hak,hakd->had", queries, self.key_weight) * self.norm_scale[:, None]
        weights = (tokens @ directions.flatten(0, 1).mT).softmax(dim=1)
        means = (weights.mT @ tokens).unflatten(1, directions.shape[:2])
        values = torch.einsum("bhad,hakd->hbak", means * self.norm_scale[:, None], self.value_weight)
        return values.flatten(2) @ self.out_weight.mT


class StackedBatchNorm(nn.Module):
    """Batch norm without affine over the images of all ranks, with gradient; running statistics in evaluation."""

    def __init__(self, num_stacked: int, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(num_stacked, dim))
        self.register_buffer("variance", torch.ones(num_stacked, dim))

    def forward(self, values: Float[Tensor, "H b D"], batch_size: int | None) -> Float[Tensor, "H b D"]:
        """Normalise; ``batch_size`` as for ``AttentiveHead``."""
        if batch_size is None:
            return (values - self.mean[:, None]) * (self.variance[:, None] + self.eps).rsqrt()
        mean = summed(values.sum(dim=1)) / batch_size
        centered = values - mean[:, None]
        variance = summed(centered.square().sum(dim=1)) / batch_size
        self.mean.lerp_(mean.detach(), _BATCH_NORM_MOMENTUM)
        unbiased = variance.detach() * (batch_size / max(1, batch_size - 1))
        self.variance.lerp_(unbiased, _BATCH_NORM_MOMENTUM)
        return centered * (variance[:, None] + self.eps).rsqrt()


class AttentiveHeads(Heads):
    """Stacked attentive heads for each kind of tokens."""

    def __init__(self, dims: Sequence[int], num_heads: int, num_classes: int, num_rates: int) -> None:
        super().__init__()
        self.kinds = nn.ModuleList([AttentiveHead(dim, num_heads, num_classes, num_rates) for dim in dims])

    @torch.no_grad()
    def logits(self, features: Sequence[Float[Tensor, "B N D"]]) -> Float[Tensor, "heads B classes"]:
        return torch.cat([head(tokens) for head, tokens in zip(self.kinds, features, strict=True)])

    @torch.enable_grad()
    def backward(self, features: Sequence[Float[Tensor, "b N D"]], labels: Int[Tensor, "b"], batch_size: int) -> None:
        for head, tokens in zip(self.kinds, features, strict=True):
            logits = head(tokens, batch_size)
            targets = labels.expand(len(logits), -1)
            # The heads share no weight: the gradient of the sum is that of each head's own loss.
            (cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / batch_size).backward()
