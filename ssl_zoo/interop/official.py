"""Official state dicts: the mapping of their parameter names to ours, and strict loading.

The maps list only differences. Our ViT has the names of timm, which are also those of the official encoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

_DDP_PREFIX = "module."  # official checkpoints were saved from the DDP wrapper


@dataclass(frozen=True)
class NameMap:
    """The mapping between official and our parameter names of a module.

    Attributes:
        renamed: official first component of a dotted name -> ours; others are equal.
        endings: official end of a dotted name -> ours.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    endings: Mapping[str, str] = field(default_factory=dict)

    def ours(self, official: str) -> str:
        return _renamed(official.removeprefix(_DDP_PREFIX), self.renamed, self.endings)

    def official(self, ours: str) -> str:
        return _renamed(ours, *({our: official for official, our in m.items()} for m in (self.renamed, self.endings)))


def _renamed(name: str, firsts: Mapping[str, str], endings: Mapping[str, str]) -> str:
    for ending, other in endings.items():
        if name.endswith(f".{ending}"):
            name = name.removesuffix(ending) + other
            break
    first, dot, rest = name.partition(".")
    return firsts.get(first, first) + dot + rest


def _narrow_vit(prefix: str, last: str) -> NameMap:
    ours = {"embed": "embed_in", "pos_embed": "pos_embed", "blocks": "blocks", "norm": "norm", last: "proj_out"}
    return NameMap({f"{prefix}_{official}": name for official, name in ours.items()})


# facebookresearch/ijepa: src/models/vision_transformer.py, VisionTransformer and VisionTransformerPredictor.
IJEPA_ENCODER = NameMap()
IJEPA_PREDICTOR = _narrow_vit("predictor", "proj")
# facebookresearch/mae: models_mae.py, MaskedAutoencoderViT; its state dict holds both networks side by side.
MAE_ENCODER = NameMap()
MAE_DECODER = _narrow_vit("decoder", "pred")
# facebookresearch/data2vec_vision: beit/modeling_cyclical.py; its state dict holds mask token and head as well.
# microsoft/SimMIM: models/vision_transformer.py; its state dict holds the mask token as well.
BEIT_ENCODER = NameMap(
    endings={
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "attn.q_bias": "attn.qkv.q_bias",
        "attn.v_bias": "attn.qkv.v_bias",
    }
)
# Atten4Vis/CAE: models/modeling_cae.py; its encoder is BEiT's with fixed positions.
CAE_REGRESSOR = NameMap(
    {"regressor_blocks": "blocks"},
    {
        "gamma_1_cross": "ls1.gamma",
        "gamma_2_cross": "ls2.gamma",
        "cross_attn.q_bias": "cross_attn.q.bias",
        "cross_attn.v_bias": "cross_attn.v.bias",
        **{f"norm2_cross.{kind}": f"norm2.{kind}" for kind in ("weight", "bias")},
        **{f"mlp_cross.{part}": f"mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")},
    },
)
CAE_DECODER = NameMap({"decoder_blocks": "blocks"}, BEIT_ENCODER.endings)


def split_data2vec(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the official data2vec state dict into the weights of the encoder and those of mask token and head."""
    own = {name: tensor for name, tensor in weights.items() if name.startswith(("mask_token", "lm_head"))}
    return {name: tensor for name, tensor in weights.items() if name not in own}, own


def split_simmim(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
    """Split the official SimMIM state dict into the weights of the encoder, the mask token and those of the head."""
    weights = {name.removeprefix(_DDP_PREFIX): tensor for name, tensor in weights.items()}
    encoder = {name.removeprefix("encoder."): t for name, t in weights.items() if not name.startswith("decoder.")}
    head = {name.removeprefix("decoder.0."): t for name, t in weights.items() if name.startswith("decoder.")}
    return encoder, encoder.pop("mask_token", None), {name: from_pixel_shuffle(t) for name, t in head.items()}


def from_pixel_shuffle(channels: Tensor) -> Tensor:
    """Convert a 1x1 convolution with outputs (colour, y, x) to a linear head with outputs (y, x, colour)."""
    rows = channels.flatten(1) if channels.ndim > 1 else channels
    return rows.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)


def to_pixel_shuffle(rows: Tensor) -> Tensor:
    """Invert ``from_pixel_shuffle``; weights get the two dimensions of a 1x1 kernel."""
    channels = rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    return channels if channels.ndim == 1 else channels[..., None, None]


def split_mae(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the official MAE state dict into the weights of encoder and decoder."""
    decoder = {
        name: tensor
        for name, tensor in weights.items()
        if name.removeprefix(_DDP_PREFIX).startswith(("decoder_", "mask_token"))
    }
    return {name: tensor for name, tensor in weights.items() if name not in decoder}, decoder


def to_official(module: nn.Module, names: NameMap) -> dict[str, Tensor]:
    """Return the module's state dict under official names; the tensors share memory with the module."""
    return {names.official(name): tensor for name, tensor in module.state_dict().items()}


def load_official(module: nn.Module, weights: Mapping[str, Tensor], names: NameMap) -> None:
    """Copy weights under official names into ``module``, either all of them or none.

    Raises:
        ValueError: a tensor is missing, unknown or has another shape; the message lists official names.
    """
    own = module.state_dict()
    given = {names.ours(name): tensor for name, tensor in weights.items()}
    complaints = [f"missing {names.official(name)}" for name in own if name not in given]
    complaints += [f"unknown {names.official(name)}" for name in given if name not in own]
    complaints += [
        f"{names.official(name)} has shape {list(tensor.shape)}, needs {list(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if complaints:
        shown, more = complaints[:5], len(complaints) - 5
        raise ValueError("; ".join(shown) + (f"; and {more} more" if more > 0 else ""))
    module.load_state_dict(given)
