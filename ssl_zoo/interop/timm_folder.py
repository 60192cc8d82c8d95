"""Export to folders that timm loads by ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

A relative position bias needs timm's ``Beit``. Everything else is a ``VisionTransformer`` with our parameter names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.engine.checkpoint.storage import save_tensors
from ssl_zoo.interop.huggingface_folder import has_final_norm, packed_bias
from ssl_zoo.interop.manifest import Preprocessing
from ssl_zoo.nn import NormPosition, Positions, ViT

_NORM_EPS = 1e-6  # of timm's layer norm, whose value no argument in a file can change
_NAMED_BY_WIDTH = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # arguments set all sizes
_BEIT_NAMES = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}


def refusals(encoder: ViT) -> Sequence[str]:
    """Return why timm can't hold an encoder, one reason per option; empty where it can."""
    config, reasons = encoder.config, []
    if config.norm_position is not NormPosition.pre:
        reasons.append(f"backbone.norm_position={config.norm_position.value}: timm's vision transformers are pre-norm")
    if config.relative_position_bias and not config.class_token:
        reasons.append("backbone.relative_position_bias=true: timm's Beit always has a class token")
    if config.relative_position_bias and not has_final_norm(encoder):
        reasons.append("an encoder with relative position biases and without final norm: timm's Beit always has one")
    if config.norm_eps != _NORM_EPS:
        reasons.append(f"backbone.norm_eps={config.norm_eps:g}: timm's models are created with {_NORM_EPS:g}")
    return reasons


def call(folder: str | Path) -> str:
    """Return the Python call that creates the exported model with its weights."""
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


def write(folder: Path, encoder: ViT, transform: Preprocessing, *, pooling: str = "average") -> str:
    """Write ``config.json`` and ``model.safetensors``, and return the ``create_model`` call without ``local-dir``.

    The second call builds the architecture alone, for weights that are loaded by hand.
    """
    architecture, arguments = model_arguments(encoder, pooling)
    height, width = transform.size
    pretrained = {
        "input_size": [transform.channels, height, width],
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop_fraction,
        "crop_mode": "center",
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    content = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model_tensors(encoder).items()}
    save_tensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    words = ", ".join(f"{name}={value!r}" for name, value in {**arguments, "num_classes": 0}.items())
    return f'timm.create_model("{architecture}", {words})'


def model_arguments(encoder: ViT, pooling: str) -> tuple[str, dict[str, Any]]:
    """Return the registered name of timm's architecture and the arguments that make it the encoder's."""
    config, hidden_dim = encoder.config, encoder.blocks[0].mlp.fc1.out_features
    size = _NAMED_BY_WIDTH.get(config.embed_dim, "base")
    arguments: dict[str, Any] = {
        "img_size": list(config.image_shape),
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": (hidden_dim + 0.5) / config.embed_dim,  # timm truncates the product
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale or 0.0,  # null means the default of the architecture
        "global_pool": "token" if pooling == "class_token" else "avg",
    }
    if config.relative_position_bias:
        shared = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_fc_norm": False}
        absolute = {"use_abs_pos_emb": config.positions is not Positions.none}
        return f"beit_{'large' if size == 'large' else 'base'}_patch16_224", {**arguments, **shared, **absolute}
    arguments |= {
        "class_token": config.class_token,
        "reg_tokens": config.num_registers,
        "no_embed_class": config.num_registers > 0,  # timm's table would have rows for registers
        "pos_embed": "none" if config.positions is Positions.none else "learn",
        "fc_norm": False,
        "final_norm": has_final_norm(encoder),
    }
    name = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "large": "vit_large_patch16_224"}
    return name.get(size, "vit_huge_patch14_224" if size == "huge" else "vit_base_patch16_224"), arguments


def model_tensors(encoder: ViT) -> Mapping[str, Tensor]:
    """Return the encoder's state dict under timm's names.

    Where keys have no bias, the packed bias gets zeros for them. Where there are registers and a class token, whose
    position has no row in timm's table, it is added to the token.
    """
    config, tensors = encoder.config, dict(encoder.state_dict())
    tensors.pop("rel_pos_bias.relative_position_index", None)  # a buffer that timm computes
    if config.relative_position_bias:
        return _beit_tensors(encoder, tensors)
    if config.qkv_bias and not config.key_bias:
        for index, block in enumerate(encoder.blocks):
            for part in ("q_bias", "v_bias"):
                del tensors[f"blocks.{index}.attn.qkv.{part}"]
            tensors[f"blocks.{index}.attn.qkv.bias"] = packed_bias(block)
    if config.num_registers and config.class_token and encoder.pos_embed is not None:
        tensors["cls_token"] = encoder.cls_token + encoder.pos_embed[:, :1]
        tensors["pos_embed"] = encoder.pos_embed[:, 1:]
    return tensors


def _beit_tensors(encoder: ViT, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name and not name.endswith(".weight"):
            continue  # biases follow, apart
        ending = next((ending for ending in _BEIT_NAMES if name.endswith(ending)), None)
        renamed[name if ending is None else name.removesuffix(ending) + _BEIT_NAMES[ending]] = tensor
    if encoder.config.qkv_bias:
        for index, block in enumerate(encoder.blocks):
            queries, _, values = packed_bias(block).chunk(3)  # softmax does not change with the biases of keys
            renamed |= {f"blocks.{index}.attn.q_bias": queries, f"blocks.{index}.attn.v_bias": values}
    return renamed


def load(folder: Path) -> torch.nn.Module:
    """Create the exported model with timm, from the folder alone."""
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
