"""Blocks whose tokens attend to tokens of another sequence (CAE, arXiv 2202.03026)."""

from functools import partial

from jaxtyping import Float
from timm.layers import DropPath, LayerScale, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_zoo.nn import kernels


class CrossAttention(nn.Module):
    """Multi-head attention with projections of its own for queries, keys and values; keys have no bias (BEiT)."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.fused_attn: bool | None = None  # set_fused_attention
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "S T D"], keys: Float[Tensor, "S L D"], values: Float[Tensor, "S L D"]
    ) -> Float[Tensor, "S T D"]:
        layers, inputs = (self.q, self.k, self.v), (queries, keys, values)
        projected = (kernels.linear(x, layer.weight, layer.bias) for layer, x in zip(layers, inputs, strict=True))
        dropout = self.dropout if self.training else 0.0
        attended = kernels.separate_attention(*projected, self.num_heads, dropout=dropout, fused=self.fused_attn)
        return kernels.linear(attended, self.proj.weight, self.proj.bias)


class CrossAttentionBlock(nn.Module):
    """``x += attention(norm1_q(x + p), norm1_k(y + p_y), norm1_v(y)); x = norm2(x); x += mlp(x)``.

    Positions are added to queries and keys alone. The second residual starts from the normed value: CAE's published
    code does so, unlike a pre-norm block.

    Args:
        layer_scale: initial factor of LayerScale; None leaves LayerScale out.
        drop_path: rate of stochastic depth.

    Raises:
        ValueError: ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        norm_eps: float,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} of cross-attention is no multiple of its {num_heads} heads")
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)
        self.norm1_q, self.norm1_k, self.norm1_v, self.norm2 = norm(), norm(), norm(), norm()
        self.cross_attn = CrossAttention(dim, num_heads, attention_dropout)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale),
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale),
        )
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "S T D"],
        y: Float[Tensor, "S L D"],
        positions: Float[Tensor, "S T D"],
        y_positions: Float[Tensor, "S L D"],
    ) -> Float[Tensor, "S T D"]:
        """Return the tokens ``x`` after they have attended to ``y``."""
        attended = self.cross_attn(self.norm1_q(x + positions), self.norm1_k(y + y_positions), self.norm1_v(y))
        x = self.norm2(x + self.drop_path1(self.ls1(attended)))
        return x + self.drop_path2(self.ls2(kernels.mlp(x, self.mlp.fc1, self.mlp.fc2)))


# What is compiled, recomputed in the backward pass and gathered as a unit.
TRANSFORMER_BLOCKS = (Block, CrossAttentionBlock)
