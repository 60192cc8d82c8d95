"""How the weights of linear maps, convolutions and norms are drawn."""

from enum import Enum

import torch
from torch import Tensor, nn

TOKEN_STD = 0.02  # class, register and mask tokens, learned positions


class Initialization(Enum):
    """Named after the distribution of the weights; biases of linear maps are zero in all of them."""

    # I-JEPA (arXiv 2301.08243). Its truncation at +-2 is at 100 standard deviations, and its division of the residual
    # projections by sqrt(2 * layer) is overwritten before training starts: neither has an effect.
    normal = "normal"
    # MAE (arXiv 2111.06377, appendix A.1): Xavier-uniform; the bias of the patch embedding keeps torch's default.
    xavier = "xavier"


@torch.no_grad()
def initialize(module: nn.Module, how: Initialization) -> None:
    """Draw every linear map, convolution and norm inside ``module`` anew."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            _draw(part.weight, how)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            part.reset_parameters()
            _draw(part.weight.flatten(1), how)
            if how is Initialization.normal:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def _draw(weight: Tensor, how: Initialization) -> None:
    if weight.is_meta:  # nothing to draw, and torch takes a second over it for a large model
        return
    if how is Initialization.normal:
        nn.init.normal_(weight, std=0.02)
    else:
        nn.init.xavier_uniform_(weight)
