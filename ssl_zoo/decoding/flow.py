"""Flow matching: a network learns the velocity that carries noise to data along straight lines, and samples follow it.

Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003. Time 0 is noise, time 1 is data.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "S *P"], Float[Tensor, "S"]], Float[Tensor, "S *P"]]


def flow_loss(
    velocity: Velocity, data: Float[Tensor, "S *P"], noise: Float[Tensor, "S *P"], normal: Float[Tensor, "S"]
) -> Float[Tensor, ""]:
    """Return the mean squared error of the velocity at one time per sample.

    Args:
        velocity: of (points on the lines, times).
        noise: standard normal, the lines' beginnings.
        normal: standard normal; its logistic function is the time, so that most lie between the ends, where the
            velocity is hardest to estimate (Esser et al., arXiv 2403.03206, sec. 3.1).
    """
    time = normal.sigmoid()
    points = torch.lerp(noise, data, time.view(-1, *[1] * (data.ndim - 1)))
    return F.mse_loss(velocity(points, time).float(), data - noise)


@torch.no_grad()
def flow_samples(velocity: Velocity, noise: Float[Tensor, "S *P"], num_steps: int) -> Float[Tensor, "S *P"]:
    """Follow the velocity from noise to data in ``num_steps`` steps of Heun's method, two evaluations each.

    The last step is one of Euler's, since its second evaluation would be at time 1.
    """
    times = torch.linspace(0, 1, num_steps + 1, device=noise.device)
    points = noise
    for start, end in itertools.pairwise(times):
        slope = velocity(points, start.expand(len(points)))
        ahead = points + (end - start) * slope
        if end < 1:
            slope = (slope + velocity(ahead, end.expand(len(points)))) / 2
        points = points + (end - start) * slope
    return points
