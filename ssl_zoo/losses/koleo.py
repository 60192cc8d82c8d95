"""KoLeo: features of different images spread over the sphere (arXiv 1806.03198, sec. 3.1; DINOv2, arXiv 2304.07193)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.world import World

_EPS = 1e-8  # keeps the loss of two equal images finite


def koleo(features: Float[Tensor, "B D"], world: World) -> Float[Tensor, ""]:
    """Average -log of the distance between each image's unit vector and its nearest neighbour.

    Differs from the reference: DINOv2 searches the neighbour among the images of the rank, here it is searched among
    those of all ranks, so that the loss does not depend on their number.
    """
    own = F.normalize(features.float(), dim=-1)
    everyone = world.gather(own)
    with torch.no_grad():
        place = torch.arange(len(own), device=own.device) + world.rank * len(own)
        nearest = (own @ everyone.T).scatter(1, place[:, None], -torch.inf).argmax(dim=1)
    distances = F.pairwise_distance(own, everyone.index_select(0, nearest), eps=_EPS)
    return -(distances + _EPS).log().mean()
