"""An encoder's weights brought to another configuration of ``ViT``, exactly where that is possible.

What can be converted without changing the function is converted: biases of keys, LayerScale, tables of positions for
the same grid. What changes it a little is done and said: other sizes of images, other channels, class token, registers.
Everything else is refused with the key to set.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.nn import NormPosition, Positions, ViTConfig
from ssl_zoo.nn.relative_position import relative_position_index
from ssl_zoo.nn.resize import resize_vit

_KERNEL, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
_TABLE, _INDEX = "rel_pos_bias.relative_position_bias_table", "rel_pos_bias.relative_position_index"
_CLASS_ROWS = 3  # of a table of relative biases: class to patch, patch to class, class to class
State = dict[str, Tensor]


class UnfitWeights(ValueError):
    """Weights of an encoder that can't become those of the configured one; the message has the keys to set."""


def fit_encoder(
    state: Mapping[str, Tensor], source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]
) -> tuple[State, list[str]]:
    """Return a ViT's weights for another configuration, and what was changed, in words.

    Args:
        state: weights of a ViT with the configuration ``source``.
        initial: freshly initialised weights of the result, for what ``state`` has nothing for.

    Raises:
        UnfitWeights: the networks differ in what can't be converted.
    """
    if differences := _unfit(source, target):
        listing = "; ".join(differences)
        raise UnfitWeights(f"the encoder differs from that of the weights: {listing}")
    fitted, notes = dict(state), []
    for fit in (_fit_size, _fit_channels, _fit_class_token, _fit_registers, _fit_positions, _fit_relative_bias):
        notes += fit(fitted, source, target, initial)
    for fit in (_fit_attention_biases, _fit_layer_scale, _fit_final_norm):
        notes += fit(fitted, source, target, initial)
    if source.norm_eps != target.norm_eps:
        notes.append(f"backbone.norm_eps={target.norm_eps:g} here, {source.norm_eps:g} in the weights")
    return fitted, notes


def _unfit(source: ViTConfig, target: ViTConfig) -> list[str]:
    """List the keys that must be set for the weights to fit, e.g. ``set backbone.depth=12 (here 6)``."""
    wanted = {
        name: (getattr(source, name), getattr(target, name))
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "norm_position")
    }
    hidden = [round(config.embed_dim * config.mlp_ratio) for config in (source, target)]
    if source.embed_dim == target.embed_dim and hidden[0] != hidden[1]:
        wanted["mlp_ratio"] = source.mlp_ratio, target.mlp_ratio
    if source.qkv_bias and not target.qkv_bias:
        wanted["qkv_bias"] = True, False
    if source.relative_position_bias and not target.relative_position_bias:
        wanted["relative_position_bias"] = True, False
    if source.final_norm and not target.final_norm and source.norm_position is NormPosition.pre:
        wanted["final_norm"] = True, False
    convertible = {(Positions.sincos, Positions.learned), (Positions.none, Positions.learned)}
    if (source.positions, target.positions) not in convertible:
        wanted["positions"] = source.positions, target.positions
    if source.positions is Positions.sincos and target.positions is Positions.sincos:
        wanted["sincos_layout"] = source.sincos_layout, target.sincos_layout
    return [
        f"set backbone.{name}={_written(theirs)} (here {_written(ours)})"
        for name, (theirs, ours) in wanted.items()
        if theirs != ours
    ]


def _written(value: object) -> str:
    text = str(getattr(value, "name", value))
    return text.lower() if isinstance(value, bool) else text


def _fit_size(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.grid == target.grid:
        return []
    sized = replace(source, image_size=target.image_size, image_width=target.image_width)
    state |= resize_vit(state, source.grid, sized)
    (height, width), (old_height, old_width) = target.image_shape, source.image_shape
    how = {Positions.sincos: "recomputed", Positions.learned: "interpolated (bicubic)"}.get(source.positions)
    found = [how and f"positions {how}", source.relative_position_bias and "relative biases interpolated (bicubic)"]
    what = " and ".join(filter(None, found)) or "no positions"
    return [f"{what} for {height}x{width} px instead of {old_height}x{old_width}"]


def adapt_channels(kernel: Float[Tensor, "D C P P"], channels: int) -> Float[Tensor, "D channels P P"]:
    """Convert the kernel of a patch embedding to another number of channels by timm's rule.

    One channel gets the sum, so that a grey image has the features that it has as a colour image. Other numbers repeat
    the channels and scale them by old / new number.
    """
    old = kernel.shape[1]
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = kernel.repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return repeated * (old / channels)


def _fit_channels(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.in_channels == target.in_channels:
        return []
    state[_KERNEL] = adapt_channels(state[_KERNEL], target.in_channels)
    how = "summed" if target.in_channels == 1 else "repeated and scaled"
    return [f"{source.in_channels} colour channels {how} to {target.in_channels} (timm's rule)"]


def _fit_class_token(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.class_token == target.class_token:
        return []
    if source.class_token:
        del state["cls_token"]
        if _POSITIONS in state:
            state[_POSITIONS] = state[_POSITIONS][:, 1:]
        if _TABLE in state:
            state[_TABLE] = state[_TABLE][:-_CLASS_ROWS]
    else:
        state["cls_token"] = initial["cls_token"]
        if _POSITIONS in state:
            first = initial[_POSITIONS][:, :1] if target.positions is Positions.learned else None
            table = state[_POSITIONS]
            row = table.new_zeros(1, 1, table.shape[-1]) if first is None else first.to(table)
            state[_POSITIONS] = torch.cat([row, table], dim=1)
        if _TABLE in state:
            state[_TABLE] = torch.cat([state[_TABLE], state[_TABLE].new_zeros(_CLASS_ROWS, source.num_heads)])
    if _TABLE in state:
        state[_INDEX] = relative_position_index(target.grid, target.class_token)
    return ["class token dropped" if source.class_token else "class token fresh"]


def _fit_registers(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.num_registers == target.num_registers:
        return []
    state.pop("reg_token", None)
    if target.num_registers:
        state["reg_token"] = initial["reg_token"]
        return [f"{target.num_registers} registers fresh"]
    return [f"{source.num_registers} registers dropped"]


def _fit_positions(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.positions is target.positions:
        return []
    if source.positions is Positions.none:
        state[_POSITIONS] = torch.zeros_like(initial[_POSITIONS])
    values = "zeros" if source.positions is Positions.none else "sin-cos values"
    return [f"learned positions start with {values}"]


def _fit_relative_bias(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if source.relative_position_bias == target.relative_position_bias:
        return []
    state |= {_TABLE: torch.zeros_like(initial[_TABLE]), _INDEX: initial[_INDEX]}
    return ["relative position biases start with zeros"]


def _fit_attention_biases(
    state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]
) -> list[str]:
    """Biases of keys add the same number to all logits of a query, which the softmax cancels."""
    if (source.qkv_bias, source.key_bias) == (target.qkv_bias, target.key_bias) or not target.qkv_bias:
        return []
    for block in range(source.depth):
        name = f"blocks.{block}.attn.qkv."
        zeros = torch.zeros(source.embed_dim)
        if f"{name}bias" in state:
            query, _, value = state.pop(f"{name}bias").chunk(3)
        else:
            query, value = (state.pop(f"{name}{part}_bias", zeros) for part in "qv")
        if target.key_bias:
            state[f"{name}bias"] = torch.cat([query, zeros, value])
        else:
            state |= {f"{name}q_bias": query, f"{name}v_bias": value}
    return ["biases of keys start with zeros" if target.key_bias else "biases of keys dropped, which changes nothing"]


def _fit_layer_scale(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    if (source.layer_scale is None) == (target.layer_scale is None):
        return []
    for block in range(source.depth):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            name = f"blocks.{block}.{scale}.gamma"
            if source.layer_scale is None:
                state[name] = torch.ones(source.embed_dim)
                continue
            gamma, layer = state.pop(name), f"blocks.{block}.{layer}"
            state[f"{layer}.weight"] = gamma[:, None] * state[f"{layer}.weight"]
            state[f"{layer}.bias"] = gamma * state[f"{layer}.bias"]
    return ["LayerScale starts with ones" if source.layer_scale is None else "LayerScale folded into the weights"]


def _fit_final_norm(state: State, source: ViTConfig, target: ViTConfig, initial: Mapping[str, Tensor]) -> list[str]:
    has_norm = [name for name in ("norm.weight", "norm.bias") if name in initial and name not in state]
    state |= {name: initial[name] for name in has_norm}
    return ["final norm fresh"] if has_norm else []
