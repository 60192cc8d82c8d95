"""Contrastive losses: which of the views of a batch shows the same image (InfoNCE, arXiv 1807.03748)."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssl_zoo.world import World


def cosine_logits(
    anchors: Float[Tensor, "A D"], candidates: Float[Tensor, "C D"], temperature: float
) -> Float[Tensor, "A C"]:
    """Return cosine similarities divided by the temperature, in float32 also under autocast.

    A low temperature would enlarge the rounding errors of a bf16 matmul to whole units.
    """
    kind = anchors.device.type
    is_rounded = torch.amp.is_autocast_available(kind)  # the meta device has no autocast
    with torch.autocast(kind, enabled=False) if is_rounded else nullcontext():
        return F.normalize(anchors.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T / temperature


def nt_xent_logits(
    first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], temperature: float, world: World
) -> tuple[Float[Tensor, "A C"], Int[Tensor, "A"]]:
    """Compare every view of this rank with all views of all ranks; their cross entropy is NT-Xent (arXiv 2002.05709).

    Gradients pass through both sides, also to the views of other ranks.

    Args:
        first, second: projections of two views, row i of both of one image; as many images on every rank.

    Returns:
        The logits of A = 2B anchors, the first views before the second ones, and the column of each anchor's other
        view. The C columns are first the first and then the second views of all ranks. An anchor's own column has the
        logit -inf.
    """
    num_images = len(first)
    everyone = world.gather(torch.stack([first, second], dim=1))  # one collective for both views
    logits = cosine_logits(torch.cat([first, second]), everyone.transpose(0, 1).flatten(0, 1), temperature)
    place = torch.arange(num_images, device=first.device) + world.rank * num_images
    own = torch.cat([place, place + len(everyone)])
    return logits.scatter(1, own[:, None], -torch.inf), own.roll(num_images)
