"""Stacks of timm's pre-norm transformer blocks."""

from collections.abc import Sequence
from functools import partial

from timm.models.vision_transformer import Block
from torch import nn


def transformer_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    *,
    mlp_ratio: float,
    norm_eps: float,
    qkv_bias: bool = True,
    layer_scale: float | None = None,
    drop_path: float = 0.0,
) -> nn.ModuleList:
    """``depth`` blocks ``x += attention(norm1(x)); x += mlp(norm2(x))`` with exact GELU.

    Args:
        mlp_ratio: hidden width over ``dim``; the product is rounded, so that a ratio like 48/11 gives the whole number
            that was meant.
        layer_scale: initial factor on both residual branches; None leaves the factors out.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
    """
    hidden_dim = round(dim * mlp_ratio)
    return nn.ModuleList(
        Block(
            dim,
            num_heads,
            mlp_ratio=(hidden_dim + 0.5) / dim,  # timm truncates the product
            qkv_bias=qkv_bias,
            init_values=layer_scale,
            drop_path=rate,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        )
        for rate in _ramp(drop_path, depth)
    )


def _ramp(last: float, depth: int) -> Sequence[float]:
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def set_fused_attention(module: nn.Module, enabled: bool) -> None:
    """Choose between torch's fused attention kernels and the plain softmax product for every block in ``module``.

    Both compute the same function; which is faster depends on the device and the number of tokens.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = enabled
