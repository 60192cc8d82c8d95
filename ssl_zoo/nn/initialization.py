"""How the weights of linear maps, convolutions and norms are drawn."""

from enum import Enum

import torch
from torch import Tensor, nn

from ssl_zoo.nn.blocks import QueryValueBiasLinear

TOKEN_STD = 0.02  # class, register and mask tokens, learned positions


class Initialization(Enum):
    """Named after the distribution of the weights; biases of linear maps are zero in all of them."""

    # I-JEPA (arXiv 2301.08243). Its truncation at +-2 is at 100 standard deviations, and its division of the residual
    # projections by sqrt(2 * layer) is overwritten before training starts: neither has an effect.
    normal = "normal"
    # MAE (arXiv 2111.06377, appendix A.1): Xavier-uniform; the bias of the patch embedding keeps torch's default.
    xavier = "xavier"
    # BEiT, data2vec 1.0, SimMIM: N(0, 0.02) cut off at one standard deviation, and the maps that end a block's branches
    # divided by sqrt(2 * number of the block).
    beit = "beit"
    # data2vec 2.0: N(0, 0.02), Xavier-uniform patch embedding, and a class token from N(0, 1).
    data2vec2 = "data2vec2"
    # DINO, iBOT: N(0, 0.02); the patch embedding keeps torch's default.
    dino = "dino"


@torch.no_grad()
def initialize(module: nn.Module, how: Initialization) -> None:
    """Draw every linear map, convolution and norm inside ``module`` anew."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            _draw(part.weight, how)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, QueryValueBiasLinear):
                part.zero_biases()
        elif isinstance(part, nn.Conv2d):
            part.reset_parameters()
            if how is not Initialization.dino:
                _draw(part.weight.flatten(1), Initialization.xavier if how is Initialization.data2vec2 else how)
            if how in (Initialization.normal, Initialization.beit):
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


@torch.no_grad()
def initialize_token(token: Tensor, how: Initialization) -> None:
    """Draw a class token anew."""
    _draw_normal(token, std=1.0 if how is Initialization.data2vec2 else TOKEN_STD, cut=how is Initialization.beit)


@torch.no_grad()
def shrink_branches(blocks: nn.ModuleList) -> None:
    """Divide what the branches of block l = 1, 2, ... add by sqrt(2 l), as BEiT does."""
    for number, block in enumerate(blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            weight.div_((2 * number) ** 0.5)


def _draw(weight: Tensor, how: Initialization) -> None:
    if weight.is_meta:  # nothing to draw, and torch takes a second over it for a large model
        return
    if how is Initialization.xavier:
        nn.init.xavier_uniform_(weight)
    else:
        _draw_normal(weight, std=0.02, cut=how is Initialization.beit)


def _draw_normal(tensor: Tensor, std: float, cut: bool) -> None:
    if cut:
        nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)
    else:
        nn.init.normal_(tensor, std=std)
