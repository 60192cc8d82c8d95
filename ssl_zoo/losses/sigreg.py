"""SIGReg: the distance of a distribution of vectors from a standard Gaussian (LeJEPA, arXiv 2511.08544)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_zoo.world import World

_ELEMENTS_AT_ONCE = 2**24  # of angles, so that memory does not grow with the number of knots


def sigreg(
    samples: Float[Tensor, "S V D"],
    directions: Float[Tensor, "D M"],
    world: World,
    *,
    max_frequency: float,
    num_knots: int,
) -> Float[Tensor, ""]:
    """Return the Epps-Pulley statistic of normality, averaged over directions and views.

    Along a direction it is N times the integral over t of the squared distance between the characteristic function of
    the N samples of all ranks and that of N(0, 1), exp(-t^2 / 2), with the weight exp(-t^2 / 2). Ranks exchange the
    means of cosines and sines alone. For N samples of N(0, 1) its expectation is 1.06, whatever N.

    Args:
        samples: of this rank, for V views, each of which has a statistic of its own.
        directions: unit vectors.
        max_frequency: the integral is cut off at +-t of this size.
        num_knots: points of the trapezoidal rule on [0, max_frequency]; the integrand is even.
    """
    t = torch.linspace(0, max_frequency, num_knots, device=samples.device, dtype=samples.dtype)
    gaussian = (-t.square() / 2).exp()
    weights = (2 * max_frequency / (num_knots - 1)) * gaussian
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    cosines, sines = world.mean(_characteristic_function(samples @ directions, t))
    squares = (cosines - gaussian[:, None, None]).square() + sines.square()
    statistic = len(samples) * world.size * torch.einsum("kvm,k->vm", squares, weights)
    return statistic.mean()


def _characteristic_function(x: Float[Tensor, "S V M"], t: Float[Tensor, "K"]) -> Float[Tensor, "2 K V M"]:
    """Return the mean cosine and sine of t times the samples; the backward pass computes the angles again."""
    at_once = max(1, _ELEMENTS_AT_ONCE // x.numel())
    means = [checkpoint(_means, x, part, use_reentrant=False, preserve_rng_state=False) for part in t.split(at_once)]
    return torch.cat(means, dim=1)


def _means(x: Float[Tensor, "S V M"], t: Float[Tensor, "k"]) -> Float[Tensor, "2 k V M"]:
    angles = t[:, None, None, None] * x
    return torch.stack([angles.cos().mean(dim=1), angles.sin().mean(dim=1)])
