"""Export to folders that Hugging Face's ``transformers`` loads: which class holds an encoder, and under which names.

Files keep the names of the hub's older files, which every version of ``transformers`` reads: later versions rename them
when they load. The class defaults of ``layer_norm_eps`` (1e-12) differ from ours and are always written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.engine.checkpoint.storage import save_tensors
from ssl_zoo.interop.manifest import Preprocessing
from ssl_zoo.method import Method
from ssl_zoo.nn import NarrowViT, NormPosition, Positions, ViT, ViTConfig

LAYER_NAMES = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "ls1.gamma": "lambda_1",
    "ls2.gamma": "lambda_2",
}
DINOV2_LAYER_NAMES = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Choice:
    """A class of ``transformers`` and the ``model_type`` of its config."""

    architecture: str
    model_type: str


IJEPA = Choice("IJepaModel", "ijepa")
VIT = Choice("ViTModel", "vit")
MAE = Choice("ViTMAEForPreTraining", "vit_mae")
DATA2VEC = Choice("Data2VecVisionModel", "data2vec-vision")
BEIT = Choice("BeitModel", "beit")
DINOV2 = Choice("Dinov2WithRegistersModel", "dinov2_with_registers")


def has_final_norm(encoder: ViT) -> bool:
    """Return whether a norm follows the last block."""
    return not isinstance(encoder.norm, nn.Identity)


def refusals(encoder: ViT) -> Sequence[str]:
    """Return why no class of ``transformers`` holds an encoder, one reason per option; empty where one does."""
    config, reasons = encoder.config, []
    is_square = config.grid[0] == config.grid[1]
    if config.norm_position is not NormPosition.pre:
        reasons.append(f"backbone.norm_position={config.norm_position.value}: its vision transformers are pre-norm")
    elif not has_final_norm(encoder):
        reasons.append("an encoder without final norm: its vision transformers have one")
    if config.relative_position_bias and not (config.class_token and is_square):
        reasons.append("backbone.relative_position_bias=true: BeitModel needs a class token and square images")
    if config.num_registers and not config.class_token:
        reasons.append(f"backbone.num_registers={config.num_registers}: registers need backbone.class_token=true")
    if config.num_registers and (not is_square or not float(config.mlp_ratio).is_integer()):
        reasons.append(
            f"backbone.num_registers={config.num_registers}: Dinov2WithRegistersModel needs square images and a whole "
            "backbone.mlp_ratio"
        )
    if config.layer_scale is not None and not (config.class_token and is_square):
        reasons.append(f"backbone.layer_scale={config.layer_scale}: BeitModel needs a class token and square images")
    return reasons


def choose(config: ViTConfig, method: str, decoder: NarrowViT | None) -> Choice:
    """Return the class for a backbone without ``refusals``."""
    if config.num_registers:
        return DINOV2
    if config.relative_position_bias or config.layer_scale is not None:
        return DATA2VEC if method == "data2vec" else BEIT
    if not config.class_token:
        return IJEPA
    return VIT if decoder is None else MAE


def fitting_decoder(method: Method, name: str, config: ViTConfig) -> NarrowViT | None:
    """Return MAE's decoder where ``ViTMAEForPreTraining`` holds it together with its encoder, else None."""
    decoder = getattr(method, "decoder", None)
    if name != "mae" or not isinstance(decoder, NarrowViT) or not config.class_token or config.num_registers:
        return None
    predicts_pixels = decoder.proj_out.out_features == config.in_channels * config.patch_size**2
    is_square = config.grid[0] == config.grid[1]
    return decoder if predicts_pixels and is_square and config.positions is not Positions.none else None


def write(
    folder: Path,
    encoder: ViT,
    transform: Preprocessing,
    choice: Choice,
    decoder: NarrowViT | None = None,
    *,
    mask_ratio: float = 0.75,
    normalize_targets: bool = True,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Args:
        decoder: of ``ViTMAEForPreTraining``.
        mask_ratio, normalize_targets: of the run, for that class.
    """
    config, tensors = model_config(encoder, choice), encoder_tensors(encoder, choice)
    if choice is MAE:
        config |= _decoder_config(decoder) | {"mask_ratio": mask_ratio, "norm_pix_loss": normalize_targets}
        tensors = {f"vit.{name}": tensor for name, tensor in tensors.items()} | decoder_tensors(decoder)
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_tensors(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config", config), ("preprocessor_config", preprocessor_config(transform))):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def model_config(encoder: ViT, choice: Choice) -> dict[str, Any]:
    """Return the ``config.json`` of the encoder."""
    config = encoder.config
    height, width = config.image_shape
    values: dict[str, Any] = {
        "architectures": [choice.architecture],
        "model_type": choice.model_type,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": _hidden_dim(encoder),
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "qkv_bias": config.qkv_bias,
        "torch_dtype": "float32",
    }
    if choice in (DATA2VEC, BEIT):
        values |= {
            "use_shared_relative_position_bias": config.relative_position_bias,
            "use_relative_position_bias": False,
            "use_absolute_position_embeddings": config.positions is not Positions.none,
            "layer_scale_init_value": config.layer_scale or 0.0,
            "use_mean_pooling": False,  # with true the final norm is left out
            "use_mask_token": False,
            "drop_path_rate": 0.0,
        }
    elif choice is DINOV2:
        del values["intermediate_size"]
        values |= {"mlp_ratio": int(config.mlp_ratio), "num_register_tokens": config.num_registers}
    return values


def preprocessor_config(transform: Preprocessing) -> dict[str, Any]:
    """Return the ``preprocessor_config.json`` of images that are larger than the encoder's input.

    The shorter side is resized to ``size / crop_fraction`` and the centre is cropped, as for evaluations. For images
    that are not square the two differ by less than a pixel at the borders.
    """
    height, width = transform.size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": transform.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) / transform.crop_fraction)},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }


def encoder_tensors(encoder: ViT, choice: Choice) -> dict[str, Tensor]:
    """Return the encoder's tensors under the names of the class, without prefix."""
    config = encoder.config
    names = DINOV2_LAYER_NAMES if choice is DINOV2 else LAYER_NAMES
    has_key_bias = choice not in (DATA2VEC, BEIT)
    tensors = {
        "embeddings.patch_embeddings.projection.weight": encoder.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": encoder.patch_embed.proj.bias,
        "layernorm.weight": encoder.norm.weight,
        "layernorm.bias": encoder.norm.bias,
    }
    if config.positions is not Positions.none:
        tensors["embeddings.position_embeddings"] = encoder.pos_embed
    elif choice not in (DATA2VEC, BEIT):
        num_slots = int(config.class_token) + encoder.num_patches
        tensors["embeddings.position_embeddings"] = torch.zeros(1, num_slots, config.embed_dim)
    if config.class_token:
        tensors["embeddings.cls_token"] = encoder.cls_token
    if choice is DINOV2:
        tensors["embeddings.register_tokens"] = encoder.reg_token
        tensors["embeddings.mask_token"] = torch.zeros(1, config.embed_dim)
    if encoder.rel_pos_bias is not None:
        table = "encoder.relative_position_bias.relative_position_bias_table"
        tensors[table] = encoder.rel_pos_bias.relative_position_bias_table
    for index, block in enumerate(encoder.blocks):
        of_block = block_tensors(block, names, has_key_bias=has_key_bias, has_bias=config.qkv_bias or not has_key_bias)
        if choice is DINOV2 and config.layer_scale is None:
            of_block |= {f"layer_scale{n}.lambda1": torch.ones(config.embed_dim) for n in (1, 2)}
        tensors |= {f"encoder.layer.{index}.{name}": tensor for name, tensor in of_block.items()}
    return tensors


def block_tensors(
    block: nn.Module, names: Mapping[str, str], *, has_key_bias: bool = True, has_bias: bool = True
) -> dict[str, Tensor]:
    """Return a block's tensors with queries, keys and values apart.

    Softmax does not change with the biases of keys, which add one number to all logits of a query. Classes without them
    compute the same.
    """
    tensors = {}
    for name, tensor in block.state_dict().items():
        if name.startswith("attn.qkv."):
            continue
        ours = next((prefix for prefix in names if name == prefix or name.startswith(f"{prefix}.")), None)
        tensors[name if ours is None else names[ours] + name.removeprefix(ours)] = tensor
    weights, biases = block.attn.qkv.weight.chunk(3), packed_bias(block).chunk(3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        tensors[f"attention.attention.{part}.weight"] = weight
        if has_bias and (part != "key" or has_key_bias):
            tensors[f"attention.attention.{part}.bias"] = bias
    return tensors


def packed_bias(block: nn.Module) -> Float[Tensor, "three_D"]:
    """Return the biases of queries, keys and values; zeros for those that the block lacks."""
    qkv = block.attn.qkv
    if hasattr(qkv, "packed_bias"):
        return qkv.packed_bias()
    return qkv.weight.new_zeros(qkv.out_features) if qkv.bias is None else qkv.bias


def decoder_tensors(decoder: NarrowViT) -> dict[str, Tensor]:
    """Return the tensors of MAE's decoder under the names of ``ViTMAEForPreTraining``."""
    renamed = {"embed_in": "decoder_embed", "norm": "decoder_norm", "proj_out": "decoder_pred"}
    tensors = {"decoder.mask_token": decoder.mask_token, "decoder.decoder_pos_embed": decoder.pos_embed}
    for ours, theirs in renamed.items():
        module = getattr(decoder, ours)
        tensors |= {f"decoder.{theirs}.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, block in enumerate(decoder.blocks):
        of_block = block_tensors(block, LAYER_NAMES)
        tensors |= {f"decoder.decoder_layers.{index}.{name}": tensor for name, tensor in of_block.items()}
    return tensors


def _decoder_config(decoder: NarrowViT) -> dict[str, int]:
    first = decoder.blocks[0]
    return {
        "decoder_hidden_size": decoder.embed_in.out_features,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": first.attn.num_heads,
        "decoder_intermediate_size": first.mlp.fc1.out_features,
    }


def _hidden_dim(encoder: ViT) -> int:
    return encoder.blocks[0].mlp.fc1.out_features
