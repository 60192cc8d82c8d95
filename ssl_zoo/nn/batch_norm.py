"""Batch normalization over the images of all ranks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.world import World


class BatchNorm(nn.Module):
    """Batch normalization (arXiv 1502.03167) with mean and variance of the rows of all ranks, with gradient.

    Value and gradient on several ranks are those of one process with all rows. Torch's SyncBatchNorm needs GPUs.

    Differs from the reference: there are no running statistics, in training or evaluation, online or in EMA copies.
    Heads are called with batches alone and are left out after the training, so nothing would read them. Without them a
    forward pass changes no state, and checkpoints and EMA weights hold parameters only.

    Args:
        affine: the output has a trained scale and offset per channel.
    """

    def __init__(self, dim: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Float[Tensor, "S D"], world: World) -> Float[Tensor, "S D"]:
        """Normalise each channel in float32.

        Args:
            x: as many rows on every rank.
        """
        x = x.float()
        centered = x - world.mean(x.mean(dim=0))
        variance = world.mean(centered.square().mean(dim=0))  # of centered values, since E[x^2] - E[x]^2 cancels
        normalized = centered * (variance + self.eps).rsqrt()
        return normalized if self.weight is None else torch.addcmul(self.bias, normalized, self.weight)
