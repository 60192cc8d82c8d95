"""VICReg's terms: variance, covariance and invariance (arXiv 2105.04906, sec. 4.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.world import World


def covariance_of(samples: Float[Tensor, "S V D"], world: World) -> Float[Tensor, "V D D"]:
    """Return the unbiased covariance over the samples of all ranks, of each view.

    Ranks exchange D numbers and then D^2 per view. The mean is subtracted before products are averaged, since a
    difference of moments loses digits where features have a large mean.
    """
    count = len(samples) * world.size
    centred = samples - world.mean(samples.mean(dim=0))
    products = torch.einsum("svd,sve->vde", centred, centred) / len(samples)
    return world.mean(products) * (count / (count - 1))


def variance_loss(covariance: Float[Tensor, "V D D"], target_std: float) -> Float[Tensor, ""]:
    """Average the amount by which the standard deviation of a dimension falls below ``target_std``."""
    variances = covariance.diagonal(dim1=1, dim2=2)
    return (target_std - (variances + 1e-4).sqrt()).relu().mean()  # epsilon: arXiv 2105.04906, appendix D


def covariance_loss(covariance: Float[Tensor, "V D D"]) -> Float[Tensor, ""]:
    """Sum the squares of the covariances of different dimensions, divided by the number of dimensions."""
    variances = covariance.diagonal(dim1=1, dim2=2)
    squares = covariance.square().sum(dim=(1, 2)) - variances.square().sum(dim=1)
    return (squares / covariance.shape[-1]).mean()


def invariance_loss(samples: Float[Tensor, "S V D"]) -> Float[Tensor, ""]:
    """Average the squared difference of an image's views, over all pairs of different views and over dimensions."""
    return 2 * samples.var(dim=1).mean()  # a sample variance is half the mean square of the differences of pairs
