"""Folders of Hugging Face's transformers: their tensors under the names of the official codes, and their sizes.

The files of the hub keep the names of transformers 4; in memory transformers 5 has others. Both are read.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.interop.foreign_file import ForeignFileError

# model_type of config.json -> method; "vit" is a class of networks that many methods train.
METHODS_OF = {
    "ijepa": "ijepa",
    "vit_mae": "mae",
    "data2vec-vision": "data2vec",
    "vit_msn": "msn",
    "beit": "beit",
    "vit": "vit",
    "deit": "vit",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
}
_BASES = ("vit.", "beit.", "ijepa.", "data2vec_vision.", "dinov2.", "dinov2_with_registers.", "deit.")
_LAYER = re.compile(r"^(decoder\.)?(?:encoder\.layer|layers|layer|decoder_layers|decoder_encoder\.layer)\.(\d+)\.(.+)$")
_IN_LAYER = (  # in this order: the ends of some are ends of others
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.o_proj.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("lambda_1", "gamma_1"),
    ("lambda_2", "gamma_2"),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("attention.attention.relative_position_bias.", "attn."),
    ("relative_position_bias.", "attn."),
)
_OUTSIDE = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "register_tokens"),
    ("encoder.relative_position_bias.", "rel_pos_bias."),
    ("shared_position_bias.", "rel_pos_bias."),
    ("layernorm.", "norm."),
    ("decoder.decoder_", "decoder_"),
    ("decoder.mask_token", "mask_token"),
)
_PACKED = re.compile(r"^(?:attention\.attention|attention)\.(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$")


@dataclass(frozen=True)
class Sizes:
    """What ``config.json`` says about a network beyond the shapes of its tensors."""

    method: str
    num_heads: int
    norm_eps: float
    image_size: tuple[int, int]
    layer_scale: float | None
    decoder_heads: int | None


def sizes_of(config: Mapping[str, Any], folder: str) -> Sizes:
    """Read the sizes of a network that ``ViT`` can be.

    Raises:
        ForeignFileError: another kind of network, or one with parts that ``ViT`` lacks.
    """
    kind = config.get("model_type")
    if kind not in METHODS_OF:
        known = ", ".join(METHODS_OF)
        raise ForeignFileError(f"{folder} holds a model of the type {kind!r}; networks are read of the types {known}")
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu" or config.get("use_swiglu_ffn"):
        raise ForeignFileError(
            f"{folder} has hidden_act={activation!r} and use_swiglu_ffn={config.get('use_swiglu_ffn', False)}; the "
            "blocks here have GELU alone"
        )
    size = config.get("image_size", 224)
    masked = "ViTForMaskedImageModeling" in (config.get("architectures") or [])
    try:
        return Sizes(
            method="simmim" if masked else METHODS_OF[kind],
            num_heads=int(config["num_attention_heads"]),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            image_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            layer_scale=config.get("layer_scale_init_value", config.get("layerscale_value")),
            decoder_heads=config.get("decoder_num_attention_heads"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignFileError(f"config.json of {folder} lacks or garbles a size: {error!r}") from error


def official_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename tensors of transformers to the names of the official codes, and pack queries, keys and values.

    Returns:
        The renamed tensors, and for each tensor of a head the reason why it is left out. Packed tensors count as one.
    """
    base = next((base for base in _BASES if any(name.startswith(base) for name in tensors)), "")
    renamed, left_out = {}, {}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if base and not name.startswith((base, "decoder.", "lm_head.")):
            left_out[name] = "a head on the network"
            continue
        name = name.removeprefix(base)
        if name.startswith("pooler."):
            left_out[name] = "a pooler on the network"
            continue
        if layer := _LAYER.match(name):
            blocks = "decoder_blocks" if layer[1] else "blocks"
            prefix, inner = f"{blocks}.{layer[2]}.", layer[3]
            if packed := _PACKED.match(inner):
                parts[f"{prefix}attn.{packed[2]}"][packed[1][0]] = tensor  # "q", "k" or "v"
            else:
                renamed[prefix + _replaced(inner, _IN_LAYER)] = tensor
        else:
            renamed[_replaced(name, _OUTSIDE)] = tensor
    for name, of in parts.items():
        renamed |= _packed(name, of)
    return renamed, left_out


def _replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for theirs, ours in table:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _packed(name: str, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    attention, _, kind = name.rpartition(".")
    if set(of) == {"q", "k", "v"}:
        return {f"{attention}.qkv.{kind}": torch.cat([of["q"], of["k"], of["v"]])}
    if kind == "bias" and set(of) == {"q", "v"}:
        return {f"{attention}.q_bias": of["q"], f"{attention}.v_bias": of["v"]}
    return {f"{attention}.{part}.{kind}": tensor for part, tensor in of.items()}  # reported as unknown
