"""SIGReg: the distance of a distribution of vectors from a standard Gaussian (LeJEPA, arXiv 2511.08544)."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

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
    cosines, sines = world.mean(_CharacteristicFunction.apply(samples @ directions, t))
    squares = (cosines - gaussian[:, None, None]).square() + sines.square()
    statistic = len(samples) * world.size * torch.einsum("kvm,k->vm", squares, weights)
    return statistic.mean()


class _CharacteristicFunction(torch.autograd.Function):
    """Mean cosine and sine of t times the samples; keeps the samples for the backward pass, not the angles."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "S V M"], t: Float[Tensor, "K"]) -> Float[Tensor, "2 K V M"]:
        ctx.save_for_backward(x, t)
        means = [torch.stack([angles.cos().mean(1), angles.sin().mean(1)]) for angles, _ in _angles(x, t)]
        return torch.cat(means, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "2 K V M"]) -> tuple[Tensor, None]:
        x, t = ctx.saved_tensors
        of_cosines, of_sines = (gradient * t[:, None, None] / len(x)).unsqueeze(2)
        result = torch.zeros_like(x)
        for angles, part in _angles(x, t):
            result += (of_sines[part] * angles.cos() - of_cosines[part] * angles.sin()).sum(0)
        return result, None


def _angles(x: Float[Tensor, "S V M"], t: Float[Tensor, "K"]) -> Iterator[tuple[Float[Tensor, "k S V M"], slice]]:
    """Yield t times the samples for a few t at a time, with their place among all."""
    count = max(1, _ELEMENTS_AT_ONCE // x.numel())
    for start in range(0, len(t), count):
        part = slice(start, start + count)
        yield t[part, None, None, None] * x, part
