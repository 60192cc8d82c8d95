"""VISReg: mean zero, unit scale and a Gaussian shape along random directions (arXiv 2606.02572)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.world import World


@dataclass(frozen=True)
class VISRegTerms:
    """The terms of VISReg, means over views; the paper's weights are all 1."""

    center: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    shape: Float[Tensor, ""]


def visreg(samples: Float[Tensor, "S V D"], directions: Float[Tensor, "D M"], world: World) -> VISRegTerms:
    """Compare the samples of all ranks with a standard Gaussian.

    The gradient of ``scale`` does not vanish where features collapse to a point, unlike that of SIGReg. ``shape`` is
    the squared Wasserstein distance from N(0, 1) along each direction, of features divided by their standard
    deviations, which get no gradient from it.

    Differs from the reference: ranks gather their samples and share the directions, so that several processes have the
    loss and gradient of one; there each rank compares its own samples, along directions of its own.

    Args:
        samples: of this rank, for V views, each of which is compared on its own.
        directions: unit vectors.
    """
    everyone = world.gather(samples)
    count, mean = len(everyone), everyone.mean(dim=0)
    std = ((everyone - mean).square().mean(dim=0) + 1e-8).sqrt()  # the epsilon keeps the gradient at zero finite
    whitened = (everyone - mean) / (std.detach() + 1e-4)
    ordered = (whitened @ directions).sort(dim=0).values
    ranks = torch.arange(1, count + 1, device=samples.device, dtype=samples.dtype)
    quantiles = torch.special.ndtri(ranks / (count + 1))
    return VISRegTerms(
        center=mean.square().mean(),
        scale=(1 - std).square().mean(),
        shape=(ordered - quantiles[:, None, None]).square().mean(),
    )
