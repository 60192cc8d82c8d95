"""Stacks of timm's transformer blocks, with pre-norm or post-norm."""

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
    """What the norms of a block are applied to."""

    pre = "pre"  # the input of each branch (ViT, arXiv 2010.11929)
    post = "post"  # the sum after each branch (data2vec 2.0)


class LayerOutput(Enum):
    """Which output of a block ``layers`` returns."""

    block = "block"  # the residual stream after the block
    ffn = "ffn"  # the output of the MLP branch, before the residual addition (data2vec 2.0)


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
            (q_weight, kv_weight), (q_bias, kv_bias) = _split_query(attn.qkv)
            q, kv = kernels.linear(x[:, -last:], q_weight, q_bias), kernels.linear(x, kv_weight, kv_bias)
            bias = None if attn_mask is None else attn_mask[..., -last:, :]
            attended = kernels.cross_attention(q, kv, attn.num_heads, bias, **options)
        return self.drop_path1(self.ls1(_linear(attn.proj, attended)))

    def attention_weights(
        self, x: Float[Tensor, "S L D"], attn_mask: Float[Tensor, "#S H L L"] | None = None
    ) -> Float[Tensor, "S H L L"]:
        """Return the weights [query, key] with which ``forward`` attends for input tokens ``x``, in float32.

        Fused kernels don't return them, so that they are computed here.
        """
        attn = self.attn
        q, k, _ = _linear(attn.qkv, self._normed(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (logits if attn_mask is None else logits + attn_mask).float().softmax(dim=-1)

    def _normed(self, x: Float[Tensor, "S L D"]) -> Float[Tensor, "S L D"]:
        """Return what the attention branch sees of the block's input."""
        raise NotImplementedError

    def mlp_branch(self, x: Float[Tensor, "S L D"]) -> Float[Tensor, "S L D"]:
        return self.drop_path2(self.ls2(kernels.mlp(x, self.mlp.fc1, self.mlp.fc2)))


class PreNormBlock(_Branches):
    """``x += attention(norm1(x)); x += mlp(norm2(x))``."""

    def _normed(self, x: Float[Tensor, "S L D"]) -> Float[Tensor, "S L D"]:
        return self.norm1(x)

    def forward(
        self,
        x: Float[Tensor, "S L D"],
        attn_mask: Float[Tensor, "#S H L L"] | None = None,
        *,
        layer_output: LayerOutput | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "S T D"] | tuple[Float[Tensor, "S T D"], Float[Tensor, "S T D"]]:
        """Return the block's output, and with ``layer_output`` also the selected one.

        Args:
            last: return only this many tokens at the end, which attend to all tokens.
        """
        branch = self.attention_branch(self.norm1(x), attn_mask, last)
        x = (x if last is None else x[:, -last:]) + branch
        branch = self.mlp_branch(self.norm2(x))
        x = x + branch
        return x if layer_output is None else (x, branch if layer_output is LayerOutput.ffn else x)


class PostNormBlock(_Branches):
    """``x = norm1(x + attention(x)); x = norm2(x + mlp(x))``."""

    def _normed(self, x: Float[Tensor, "S L D"]) -> Float[Tensor, "S L D"]:
        return x

    def forward(
        self,
        x: Float[Tensor, "S L D"],
        attn_mask: Float[Tensor, "#S H L L"] | None = None,
        *,
        layer_output: LayerOutput | None = None,
    ) -> Float[Tensor, "S L D"] | tuple[Float[Tensor, "S L D"], Float[Tensor, "S L D"]]:
        """Return the block's output, and with ``layer_output`` also the selected one."""
        x = self.norm1(x + self.attention_branch(x, attn_mask))
        branch = self.mlp_branch(x)
        x = self.norm2(x + branch)
        return x if layer_output is None else (x, branch if layer_output is LayerOutput.ffn else x)


class QueryValueBiasLinear(nn.Linear):
    """A packed projection to queries, keys and values without a bias of the keys (BEiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S three_D"]:
        return F.linear(x, self.weight, self.packed_bias())

    def packed_bias(self) -> Float[Tensor, "three_D"]:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


def _linear(layer: nn.Linear, x: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D_out"]:
    return kernels.linear(x, layer.weight, _bias(layer))


def _bias(layer: nn.Linear) -> Float[Tensor, "D_out"] | None:
    return layer.packed_bias() if isinstance(layer, QueryValueBiasLinear) else layer.bias


def _split_query(qkv: nn.Linear) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Split weight and bias into those of the queries and those of keys and values."""
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
    """Build ``depth`` blocks of attention and an MLP with exact GELU.

    Args:
        mlp_ratio: hidden width over ``dim``; ``dim * mlp_ratio`` is rounded, so that a ratio like 48/11 is exact.
        key_bias: False leaves out the biases of keys; it has no effect without ``qkv_bias``.
        layer_scale: initial factor of LayerScale; None leaves LayerScale out.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
    """
    hidden_dim = round(dim * mlp_ratio)
    block = PreNormBlock if norm_position is NormPosition.pre else PostNormBlock
    blocks = nn.ModuleList(
        block(
            dim,
            num_heads,
            mlp_ratio=(hidden_dim + 0.5) / dim,  # timm truncates dim * mlp_ratio
            qkv_bias=qkv_bias,
            init_values=layer_scale,
            drop_path=rate,
            attn_drop=attention_dropout,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        )
        for rate in [drop_path * index / max(depth - 1, 1) for index in range(depth)]
    )
    set_fused_attention(blocks, None)
    if qkv_bias and not key_bias:
        for part in blocks:
            part.attn.qkv = QueryValueBiasLinear(dim)
    return blocks


def set_fused_attention(module: nn.Module, enabled: bool | None) -> None:
    """Choose between torch's fused attention kernels and plain matmuls with softmax for every block in ``module``.

    Both compute the same function. None chooses per call what is faster for its device, dtype and need of a gradient.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = enabled
