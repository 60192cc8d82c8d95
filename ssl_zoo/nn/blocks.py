"""Stacks of timm's transformer blocks, with the norms before or after their branches."""

from collections.abc import Sequence
from enum import Enum
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_zoo.nn import kernels


class NormPosition(Enum):
    """Where a block normalises."""

    pre = "pre"  # each branch's input (ViT, arXiv 2010.11929)
    post = "post"  # the sum after each branch (data2vec 2.0)


class LayerOutput(Enum):
    """What is taken out of a block."""

    block = "block"  # its output
    ffn = "ffn"  # the output of its MLP branch, before it is added (data2vec 2.0)


class _Branches(Block):
    """The two residual branches of a block, without norms."""

    def attention_branch(
        self, x: Float[Tensor, "S L D"], attn_mask: Float[Tensor, "#S H L L"] | None, last: int | None = None
    ) -> Float[Tensor, "S T D"]:
        attn = self.attn
        dropout = attn.attn_drop.p if self.training else 0.0
        options = {"dropout": dropout, "fused": attn.fused_attn}
        if last is None:
            attended = kernels.attention(_linear(attn.qkv, x), attn.num_heads, attn_mask, **options)
        else:
            (q_weight, kv_weight), (q_bias, kv_bias) = _query_and_rest(attn.qkv)
            q, kv = kernels.linear(x[:, -last:], q_weight, q_bias), kernels.linear(x, kv_weight, kv_bias)
            bias = None if attn_mask is None else attn_mask[..., -last:, :]
            attended = kernels.cross_attention(q, kv, attn.num_heads, bias, **options)
        return self.drop_path1(self.ls1(_linear(attn.proj, attended)))

    def mlp_branch(self, x: Float[Tensor, "S L D"]) -> Float[Tensor, "S L D"]:
        return self.drop_path2(self.ls2(kernels.mlp(x, self.mlp.fc1, self.mlp.fc2)))


class PreNormBlock(_Branches):
    """``x += attention(norm1(x)); x += mlp(norm2(x))``."""

    def forward(
        self,
        x: Float[Tensor, "S L D"],
        attn_mask: Float[Tensor, "#S H L L"] | None = None,
        *,
        layer_output: LayerOutput | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "S T D"] | tuple[Float[Tensor, "S T D"], Float[Tensor, "S T D"]]:
        """The block's output; with ``layer_output`` also what is taken out of it.

        Args:
            last: the output is that of so many tokens at the end, which attend to all tokens.
        """
        branch = self.attention_branch(self.norm1(x), attn_mask, last)
        x = (x if last is None else x[:, -last:]) + branch
        branch = self.mlp_branch(self.norm2(x))
        x = x + branch
        return x if layer_output is None else (x, branch if layer_output is LayerOutput.ffn else x)


class PostNormBlock(_Branches):
    """``x = norm1(x + attention(x)); x = norm2(x + mlp(x))``."""

    def forward(
        self,
        x: Float[Tensor, "S L D"],
        attn_mask: Float[Tensor, "#S H L L"] | None = None,
        *,
        layer_output: LayerOutput | None = None,
    ) -> Float[Tensor, "S L D"] | tuple[Float[Tensor, "S L D"], Float[Tensor, "S L D"]]:
        """The block's output; with ``layer_output`` also what is taken out of it."""
        x = self.norm1(x + self.attention_branch(x, attn_mask))
        branch = self.mlp_branch(x)
        x = self.norm2(x + branch)
        return x if layer_output is None else (x, branch if layer_output is LayerOutput.ffn else x)


class QueryValueBiasLinear(nn.Linear):
    """A packed projection to queries, keys and values without a bias on the keys (BEiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S three_D"]:
        return F.linear(x, self.weight, self.packed_bias())

    def packed_bias(self) -> Float[Tensor, "three_D"]:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    @torch.no_grad()
    def zero_biases(self) -> None:
        self.q_bias.zero_()
        self.v_bias.zero_()


def _linear(layer: nn.Linear, x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D_out"]:
    return kernels.linear(x, layer.weight, _bias(layer))


def _bias(layer: nn.Linear) -> Float[Tensor, "D_out"] | None:
    return layer.packed_bias() if isinstance(layer, QueryValueBiasLinear) else layer.bias


def _query_and_rest(qkv: nn.Linear) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Weights and biases of queries, and of keys and values together."""
    dim, bias = qkv.in_features, _bias(qkv)
    sizes = (dim, 2 * dim)
    return qkv.weight.split(sizes), (None, None) if bias is None else bias.split(sizes)


def transformer_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    *,
    mlp_ratio: float,
    norm_eps: float,
    qkv_bias: bool = True,
    key_bias: bool = True,
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    attention_dropout: float = 0.0,
    norm_position: NormPosition = NormPosition.pre,
) -> nn.ModuleList:
    """``depth`` blocks of attention and an MLP with exact GELU.

    Args:
        mlp_ratio: hidden width over ``dim``; the product is rounded, so that a ratio like 48/11 gives the whole number
            that was meant.
        key_bias: with False queries and values alone have one; without ``qkv_bias`` it means nothing.
        layer_scale: initial factor on both residual branches; None leaves the factors out.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
    """
    hidden_dim = round(dim * mlp_ratio)
    block = PreNormBlock if norm_position is NormPosition.pre else PostNormBlock
    blocks = nn.ModuleList(
        block(
            dim,
            num_heads,
            mlp_ratio=(hidden_dim + 0.5) / dim,  # timm truncates the product
            qkv_bias=qkv_bias,
            init_values=layer_scale,
            drop_path=rate,
            attn_drop=attention_dropout,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        )
        for rate in _ramp(drop_path, depth)
    )
    set_fused_attention(blocks, None)
    if qkv_bias and not key_bias:
        for part in blocks:
            part.attn.qkv = QueryValueBiasLinear(dim)
    return blocks


def _ramp(last: float, depth: int) -> Sequence[float]:
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def set_fused_attention(module: nn.Module, enabled: bool | None) -> None:
    """Choose between torch's fused attention kernels and the plain softmax product for every block in ``module``.

    Both compute the same function; None takes for every call what is faster for its device, number format and need of
    a gradient.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = enabled
