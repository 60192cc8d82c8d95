"""Random directions, along which a distribution of vectors is compared with a Gaussian one coordinate at a time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.seeding import normal_numbers


def random_directions(step: Float[Tensor, ""], dim: int, num_directions: int) -> Float[Tensor, "D M"]:
    """Sample unit vectors, uniform on the sphere, as a function of the number of the step.

    They are new in each step and the same on all ranks, and a replayed CUDA graph samples those of its own step.
    """
    place = torch.arange(dim * num_directions, device=step.device).view(dim, num_directions)
    return F.normalize(normal_numbers(step, place), dim=0)
