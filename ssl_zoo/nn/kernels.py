"""Linear layers, MLP and attention of a block, computed by kernels that suit the device.

On CUDA, in float32 and under ``torch.compile`` they are torch's own. For bf16 autocast on a CPU torch's eager layers
waste time: they copy the bias into the output before a matmul, run GELU as a separate pass, multiply by a large
transposed gradient, and copy queries, keys and values one by one. docs/performance.md has measurements.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_MIN_COPIED_FEATURES = 256  # output features from which a copy of the transposed gradient saves time


def linear(
    x: Float[Tensor, "*S D_in"], weight: Float[Tensor, "D_out D_in"], bias: Float[Tensor, "D_out"] | None
) -> Float[Tensor, "*S D_out"]:
    """Compute ``F.linear``."""
    if bias is None or not _is_bf16_on_cpu(x):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn_linear(x, weight, bias)
    if _MIN_COPIED_FEATURES <= weight.shape[0] < weight.shape[1]:
        return _NarrowingLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def mlp(x: Float[Tensor, "*S D"], first: nn.Linear, second: nn.Linear) -> Float[Tensor, "*S D"]:
    """Compute two linear layers with exact GELU between them, which is fused into the first without gradients.

    The fused GELU acts on the sums before they are rounded to bf16, so it is closer to float32 than torch's.
    """
    if torch.is_grad_enabled() or first.bias is None or not _is_bf16_on_cpu(x):
        hidden = F.gelu(linear(x, first.weight, first.bias))
    else:
        hidden = _onednn_linear(x, first.weight, first.bias, gelu=True)
    return linear(hidden, second.weight, second.bias)


def attention(
    qkv: Float[Tensor, "S L three_D"],
    num_heads: int,
    bias: Float[Tensor, "#S H L L"] | None = None,
    *,
    dropout: float = 0.0,
    fused: bool | None = None,
) -> Float[Tensor, "S L D"]:
    """Compute multi-head attention on packed queries, keys and values.

    Args:
        bias: added to the logits.
        dropout: probability of dropping an attention weight.
        fused: torch's fused kernel, or (false) matmul, softmax, matmul; None chooses the faster one.
    """
    if fused is None and bias is None and not dropout and _plain_is_faster(qkv) and _is_bf16_on_cpu(qkv):
        return _Attention.apply(num_heads, qkv)
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return _attend(q, k, v, bias, dropout, fused)


def cross_attention(
    q: Float[Tensor, "S T D"],
    kv: Float[Tensor, "S L two_D"],
    num_heads: int,
    bias: Float[Tensor, "#S H T L"] | None = None,
    *,
    dropout: float = 0.0,
    fused: bool | None = None,
) -> Float[Tensor, "S T D"]:
    """Compute ``attention`` for fewer queries than packed keys and values."""
    if fused is None and bias is None and not dropout and _plain_is_faster(q) and _is_bf16_on_cpu(q):
        return _Attention.apply(num_heads, q, kv)
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return _attend(q.unflatten(-1, (num_heads, -1)).transpose(1, 2), k, v, bias, dropout, fused)


def separate_attention(
    q: Float[Tensor, "S T D"],
    k: Float[Tensor, "S L D"],
    v: Float[Tensor, "S L D"],
    num_heads: int,
    *,
    dropout: float = 0.0,
    fused: bool | None = None,
) -> Float[Tensor, "S T D"]:
    """Compute ``attention`` for queries, keys and values of projections of their own."""
    if fused is None and not dropout and _plain_is_faster(q) and _is_bf16_on_cpu(q):
        return _Attention.apply(num_heads, q, k, v)
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return _attend(q, k, v, None, dropout, fused)


def _attend(
    q: Float[Tensor, "S H T d"],
    k: Float[Tensor, "S H L d"],
    v: Float[Tensor, "S H L d"],
    bias: Float[Tensor, "#S H T L"] | None,
    dropout: float,
    fused: bool | None,
) -> Float[Tensor, "S T D"]:
    if not _plain_is_faster(q) if fused is None else fused:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    else:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        attended = F.dropout(weights, dropout) @ v
    return attended.transpose(1, 2).flatten(2)


def _plain_is_faster(queries: Tensor) -> bool:
    # Measured in bf16 on a CPU: the fused kernel takes 0.5 to 0.8 of the plain one's time for the forward pass of 16 to
    # 784 tokens, but 1.6 to 10 times as long with the backward pass. Elsewhere it is never much slower.
    needs_gradient = torch.is_grad_enabled() and queries.requires_grad
    return needs_gradient and queries.device.type == "cpu" and matmul_dtype(queries) is torch.bfloat16


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matmuls with ``x``: autocast's where it is on, which it never is on the meta device."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else x.dtype


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """Compute oneDNN's linear layer, which adds the bias and applies exact GELU to sums still in registers."""
    attribute, algorithm = ("gelu", "none") if gelu else ("none", "")  # "none": GELU by the error function, not tanh
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)


class _NarrowingLinear(torch.autograd.Function):
    """A linear layer to fewer features, whose gradient is transposed by a copy.

    oneDNN reads a transposed left matrix slowly. Where it is the smaller matrix of the weight's gradient, copying it
    first costs less.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            torch.mm(rows, weight).view(x.shape) if need_x else None,
            torch.mm(rows.t().contiguous(), x.flatten(0, -2)) if need_weight else None,
            rows.sum(0) if need_bias else None,
        )


class _Attention(torch.autograd.Function):
    """Matmul, softmax, matmul with one copy of each pack of queries, keys and values, and one of its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, num_heads: int, *packs: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            counts = _PACKS[len(packs)]
            parts = [_heads_first(pack.bfloat16(), count, num_heads) for pack, count in zip(packs, counts, strict=True)]
            q, k, v = chain.from_iterable(parts)
            scale = q.shape[-1] ** -0.5
            weights = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale).softmax(dim=-1)
            attended = torch.bmm(weights, v)
        ctx.save_for_backward(q, k, v, weights)
        ctx.num_heads, ctx.num_packs = num_heads, len(packs)
        return attended.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        num_heads, scale = ctx.num_heads, q.shape[-1] ** -0.5
        gradient = gradient.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)
        by_weights = torch.bmm(gradient, v.mT)
        by_logits = torch._softmax_backward_data(by_weights, weights, -1, q.dtype)
        counts = _PACKS[ctx.num_packs]
        packs = [like.new_empty(count, *like.shape) for like, count in zip((q, k, v), counts, strict=False)]
        by_q, by_k, by_v = chain.from_iterable(packs)
        torch.baddbmm(by_q, by_logits, k, beta=0, alpha=scale, out=by_q)
        torch.baddbmm(by_k, by_logits.mT, q, beta=0, alpha=scale, out=by_k)
        torch.bmm(weights.mT, gradient, out=by_v)
        return None, *(pack.unflatten(1, (-1, num_heads)).permute(1, 3, 0, 2, 4).flatten(2) for pack in packs)


_PACKS = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}  # number of packs -> how many of queries, keys, values each one holds


def _heads_first(pack: Float[Tensor, "S L parts_D"], count: int, num_heads: int) -> Float[Tensor, "parts S_H L d"]:
    parts = pack.unflatten(-1, (count, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return parts.reshape(count, -1, pack.shape[1], parts.shape[-1])
