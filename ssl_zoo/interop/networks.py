"""Official tensors of one file, brought to the networks of a method here, under our names and as float32."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssl_zoo.interop.foreign_file import ForeignFileError
from ssl_zoo.interop.layouts import Layout
from ssl_zoo.interop.official import (
    BEIT_ENCODER,
    CAE_DECODER,
    CAE_REGRESSOR,
    IJEPA_PREDICTOR,
    MAE_DECODER,
    NameMap,
    from_pixel_shuffle,
)

ENCODERS = ("encoder", "target_encoder")
PREDICTOR = "predictor"
_TABLE = "rel_pos_bias.relative_position_bias_table"
_BLOCK_TABLE, _BLOCK_INDEX = ".attn.relative_position_bias_table", ".attn.relative_position_index"


@dataclass(frozen=True)
class Routed:
    """The tensors of a file by network.

    Attributes:
        networks: ``encoder``, ``target_encoder`` and ``predictor`` as far as the file has them, names as in the file.
        left_out: reason by name of the file.
        unknown: names for which the layout has no route.
    """

    networks: Mapping[str, dict[str, Tensor]]
    left_out: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def route(tensors: Mapping[str, Tensor], layout: Layout) -> Routed:
    """Distribute tensors over the networks of a method."""
    routed = Routed({name: {} for name in (*ENCODERS, PREDICTOR)})
    for name, tensor in tensors.items():
        way = next((way for way in layout.routes if name.startswith(way.beginning)), None)
        if way is None:
            routed.unknown.append(name)
        elif way.network is None:
            routed.left_out[name] = way.reason
        else:
            routed.networks[way.network][way.prefix + name.removeprefix(way.beginning)] = tensor
    return routed


def our_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors under the names of ``ViT``, in float32; positions keep their dtype.

    Raises:
        ForeignFileError: every block has a relative position bias of its own.
    """
    own = {
        BEIT_ENCODER.ours(_modern(name)): tensor if name == "pos_embed" else _float32(tensor)
        for name, tensor in _in_one_stack(tensors).items()
    }
    own |= _shared_bias(own)
    return {name: tensor for name, tensor in own.items() if not name.endswith((_BLOCK_TABLE, _BLOCK_INDEX))}


def _modern(name: str) -> str:
    return "reg_token" if name == "register_tokens" else name


def _in_one_stack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number data2vec 2.0's blocks of the context encoder before its main blocks."""
    depth = len({name.split(".")[1] for name in tensors if name.startswith("prenet_blocks.")})
    if not any(name.startswith("norm_pre.") for name in tensors):
        return dict(tensors)
    own = {}
    for name, tensor in tensors.items():
        stack, _, rest = name.partition(".")
        if stack == "blocks":
            number, _, inner = rest.partition(".")
            name = f"blocks.{int(number) + depth}.{inner}"
        own[f"blocks.{rest}" if stack == "prenet_blocks" else name] = tensor
    return own


def _shared_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tables = [tensor for name, tensor in tensors.items() if name.endswith(_BLOCK_TABLE)]
    if not tables:
        return {}
    if any(not table.equal(tables[0]) for table in tables[1:]):
        raise ForeignFileError(
            "every block has a relative position bias of its own, as after fine-tuning; the encoder here has one for "
            "all blocks. Import the weights from before the fine-tuning"
        )
    return {_TABLE: tables[0]}


def our_predictor(method: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a method has outside its encoders under our names, in float32."""
    own = {name: _float32(tensor) for name, tensor in tensors.items()}
    if method == "ijepa":
        return _inside("predictor", IJEPA_PREDICTOR, own)
    if method == "mae":
        return _inside("decoder", MAE_DECODER, own)
    if method == "cae":
        names = {"regressor": CAE_REGRESSOR, "decoder": CAE_DECODER}
        parts = {module: {n: t for n, t in own.items() if n.startswith(f"{module}.")} for module in names}
        others = {n: t for n, t in own.items() if n.partition(".")[0] not in names}
        return others | {n: t for module, of in parts.items() for n, t in _inside(module, names[module], of).items()}
    if method == "simmim":
        return {name: from_pixel_shuffle(t) if name.startswith("head.") else t for name, t in own.items()}
    if method == "data2vec2":
        return {name.replace(".0.", ".") if ".layers." in name else name: tensor for name, tensor in own.items()}
    return {name: tensor.flatten() if name.endswith("center") else tensor for name, tensor in own.items()}


def _inside(module: str, names: NameMap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{names.ours(name.removeprefix(f'{module}.'))}": tensor for name, tensor in tensors.items()}


def predictor_settings(method: str, tensors: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """Return the keys of ``method`` that give the networks outside the encoder their sizes; empty without tensors.

    Args:
        num_heads: attention heads of the predictor or decoder; None is that of the official code.

    Raises:
        ForeignFileError: tensors that the sizes are read from are missing.
    """
    if not tensors:
        return {}
    try:
        if method in ("ijepa", "mae"):
            module = "predictor" if method == "ijepa" else "decoder"
            settings = {
                f"{module}_dim": len(tensors[f"{module}.embed_in.weight"]),
                f"{module}_depth": _count(tensors, f"{module}.blocks."),
            }
            return settings | ({} if num_heads is None else {f"{module}_heads": num_heads})
        if method == "data2vec2":
            kernel = tensors["decoder.layers.0.weight"]
            groups = tensors["decoder.proj_out.weight"].shape[0] // kernel.shape[1]
            sizes = {"decoder_dim": len(kernel), "decoder_kernel": kernel.shape[-1], "decoder_groups": groups}
            return {**sizes, "decoder_depth": _count(tensors, "decoder.layers.")}
        if method == "cae":
            return _cae_settings(tensors, num_heads)
        if method == "msn":
            head = next(head for head in ("head.", "target_head.module.") if f"{head}fc1.weight" in tensors)
            layers = _count(tensors, f"{head}fc")
            sizes = {"head_layers": layers, "projection_dim": len(tensors[f"{head}fc{layers}.weight"])}
            sizes |= {"head_dim": len(tensors[f"{head}fc1.weight"]), "head_batch_norm": f"{head}bn1.weight" in tensors}
            return sizes | ({"num_prototypes": len(tensors["prototypes"])} if "prototypes" in tensors else {})
        if method in ("dino", "ibot"):
            head = next(head for head in ("head.", "teacher_head.module.") if f"{head}mlp.0.weight" in tensors)
            prototypes = tensors[f"{head}last_layer.weight_v"]
            sizes = {"num_prototypes": len(prototypes), "bottleneck_dim": prototypes.shape[1]}
            layers = len({name for name in tensors if name.startswith(f"{head}mlp.") and name.endswith(".weight")})
            return {**sizes, "head_layers": layers, "head_dim": len(tensors[f"{head}mlp.0.weight"])}
    except (KeyError, StopIteration, IndexError) as error:
        raise ForeignFileError(
            f"the networks beside the encoder lack {error}; with --network only an encoder is read"
        ) from error
    return {}


def _cae_settings(tensors: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    modules = [module for module in ("regressor", "decoder") if any(name.startswith(f"{module}.") for name in tensors)]
    settings: dict[str, Any] = {"decoder_dim": tensors["mask_token"].shape[-1]}
    settings |= {} if num_heads is None else {"decoder_heads": num_heads}
    for module in modules:
        tensors[f"{module}.blocks.0.mlp.fc1.weight"]  # a module without blocks is not complete
        settings[f"{module}_depth"] = _count(tensors, f"{module}.blocks.")
    if modules and f"{modules[0]}.blocks.0.ls1.gamma" not in tensors:
        settings["layer_scale"] = None
    return settings


def target_settings(method: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keys of ``targets`` that the sizes of networks outside the encoder depend on."""
    if method == "cae" and "decoder.head.weight" in tensors:
        return {"num_tokens": len(tensors["decoder.head.weight"])}
    return {}


def _count(tensors: Mapping[str, Tensor], beginning: str) -> int:
    return len({name.removeprefix(beginning).split(".")[0] for name in tensors if name.startswith(beginning)})


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
