"""Initialization schemes: the distributions that the initial weights of a network are sampled from."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from ssl_zoo.nn.blocks import QueryValueBiasLinear

TOKEN_STD = 0.02  # class, register and mask tokens, learned positions


class Distribution(Enum):
    """A distribution of weights."""

    normal = "normal"
    xavier_uniform = "xavier_uniform"
    torch_default = "torch_default"  # what the layer's reset_parameters does


@dataclass(frozen=True)
class InitScheme:
    """Distributions of the initial weights. Biases of linear layers are zero in every scheme.

    Attributes:
        linear: weights of linear layers.
        patch_embed: weights of the patch embedding, taken as one matrix.
        zero_patch_bias: the bias of the patch embedding is zero; otherwise it is torch's default.
        std: standard deviation of normal weights.
        token_std: that of class and mask tokens, which are normal in every scheme.
        truncation: every normal distribution is cut off at this many standard deviations; None cuts nothing.
        scale_branches: the layers that end the two branches of block l = 1, 2, ... are divided by sqrt(2 l).
    """

    linear: Distribution = Distribution.normal
    patch_embed: Distribution = Distribution.normal
    zero_patch_bias: bool = False
    std: float = 0.02
    token_std: float = TOKEN_STD
    truncation: float | None = None
    scale_branches: bool = False


class Initialization(Enum):
    """The named schemes, after the distribution of their weights."""

    # I-JEPA (arXiv 2301.08243). Its code truncates at +-2, which is at 100 standard deviations, and divides the
    # residual projections by sqrt(2 l), which it overwrites before training starts: neither has an effect.
    normal = InitScheme(zero_patch_bias=True)
    # MAE (arXiv 2111.06377, appendix A.1)
    xavier_uniform = InitScheme(linear=Distribution.xavier_uniform, patch_embed=Distribution.xavier_uniform)
    # BEiT (arXiv 2106.08254), data2vec 1.0, SimMIM
    trunc_normal_scaled = InitScheme(zero_patch_bias=True, truncation=1.0, scale_branches=True)
    # CAE (arXiv 2202.03026). Its code initialises as BEiT and then overwrites linear layers alone.
    xavier_uniform_normal_patch_embed = InitScheme(
        linear=Distribution.xavier_uniform, zero_patch_bias=True, truncation=1.0
    )
    # data2vec 2.0 (arXiv 2212.07525)
    normal_xavier_patch_embed = InitScheme(patch_embed=Distribution.xavier_uniform, token_std=1.0)
    # DINO (arXiv 2104.14294), iBOT
    normal_default_patch_embed = InitScheme(patch_embed=Distribution.torch_default)


@torch.no_grad()
def initialize(module: nn.Module, initialization: Initialization) -> None:
    """Sample the weights of every linear layer, convolution and norm inside ``module``."""
    scheme = initialization.value
    for part in module.modules():
        if isinstance(part, nn.Linear):
            _sample(part.weight, scheme.linear, scheme)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, QueryValueBiasLinear):
                nn.init.zeros_(part.q_bias)
                nn.init.zeros_(part.v_bias)
        elif isinstance(part, nn.Conv2d):
            part.reset_parameters()
            _sample(part.weight.flatten(1), scheme.patch_embed, scheme)
            if scheme.zero_patch_bias:
                nn.init.zeros_(part.bias)
        elif isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            part.reset_parameters()


@torch.no_grad()
def initialize_token(token: Tensor, initialization: Initialization) -> None:
    """Sample a class or mask token."""
    _sample_normal(token, initialization.value.token_std, initialization.value.truncation)


@torch.no_grad()
def scale_branches(blocks: nn.ModuleList) -> None:
    """Divide the output layers of both branches of block l = 1, 2, ... by sqrt(2 l)."""
    for number, block in enumerate(blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            weight.div_((2 * number) ** 0.5)


def _sample(weight: Tensor, distribution: Distribution, scheme: InitScheme) -> None:
    if weight.is_meta or distribution is Distribution.torch_default:  # on meta torch takes a second for a large model
        return
    if distribution is Distribution.xavier_uniform:
        nn.init.xavier_uniform_(weight)
    else:
        _sample_normal(weight, scheme.std, scheme.truncation)


def _sample_normal(tensor: Tensor, std: float, truncation: float | None) -> None:
    if truncation is None:
        nn.init.normal_(tensor, std=std)
    else:
        nn.init.trunc_normal_(tensor, std=std, a=-truncation * std, b=truncation * std)
