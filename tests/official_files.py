"""Tiny files in the layouts of the official codes, from the tables of their names; every value is random."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.nn import sincos_positions
from ssl_zoo.nn.relative_position import relative_position_index

DIM, DEPTH, HEADS, PATCH, GRID = 48, 2, 4, 8, (4, 4)
State = dict[str, Tensor]


def blocks(name: str, dim: int, depth: int, *, beit: bool = False) -> State:
    state: State = {}
    for i in range(depth):
        shapes: dict[str, tuple[int, ...]] = {
            **{f"{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")},
            **{"attn.qkv.weight": (3 * dim, dim), "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)},
            **{"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)},
            **{"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)},
        }
        own = ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias")
        shapes |= dict.fromkeys(own, (dim,)) if beit else {"attn.qkv.bias": (3 * dim,)}
        state |= {f"{name}.{i}.{key}": torch.randn(shape) for key, shape in shapes.items()}
    return state


def linear(name: str, dim_in: int, dim_out: int) -> State:
    return {f"{name}.weight": torch.randn(dim_out, dim_in), f"{name}.bias": torch.randn(dim_out)}


def norm(name: str, dim: int) -> State:
    return {f"{name}.weight": torch.randn(dim), f"{name}.bias": torch.randn(dim)}


def vit(*, class_token: bool = True, positions: str | None = "learned", beit: bool = False) -> State:
    """Return an encoder under the names that timm and the official codes share."""
    state = blocks("blocks", DIM, DEPTH, beit=beit) | norm("norm", DIM)
    state |= {"patch_embed.proj.weight": torch.randn(DIM, 3, PATCH, PATCH), "patch_embed.proj.bias": torch.randn(DIM)}
    rows = GRID[0] * GRID[1] + int(class_token)
    if class_token:
        state["cls_token"] = torch.randn(1, 1, DIM)
    if positions == "sincos":
        state["pos_embed"] = sincos_positions(GRID, DIM, num_prefix=int(class_token))
    elif positions == "learned":
        state["pos_embed"] = torch.randn(1, rows, DIM)
    return state


def relative_bias() -> State:
    return {
        "rel_pos_bias.relative_position_bias_table": torch.randn((2 * GRID[0] - 1) * (2 * GRID[1] - 1) + 3, HEADS),
        "rel_pos_bias.relative_position_index": relative_position_index(GRID, True),
    }


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def ddp(state: Mapping[str, Tensor]) -> State:
    return under("module.", state)


def narrow(prefix: str, last: str, outputs: int, num_prefix: int) -> State:
    table = sincos_positions(GRID, 32, num_prefix=num_prefix)
    return {
        "mask_token": torch.randn(1, 1, 32),
        f"{prefix}_pos_embed": table,
        **linear(f"{prefix}_embed", DIM, 32),
        **blocks(f"{prefix}_blocks", 32, 1),
        **norm(f"{prefix}_norm", 32),
        **linear(f"{prefix}_{last}", 32, outputs),
    }


def head() -> State:
    layers = linear("mlp.0", DIM, 24) | linear("mlp.2", 24, 24) | linear("mlp.4", 24, 12)
    return layers | {"last_layer.weight_g": torch.ones(20, 1), "last_layer.weight_v": torch.randn(20, 12)}


OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def ijepa() -> dict[str, Any]:
    encoders = {name: ddp(vit(class_token=False, positions="sincos")) for name in ("encoder", "target_encoder")}
    beside = {"predictor": ddp(narrow("predictor", "proj", DIM, 0)), "opt": OPTIMIZER, "scaler": None}
    return {**encoders, **beside, "epoch": 3, "loss": 0.1, "batch_size": 8, "world_size": 1, "lr": 0.1}


def mae() -> dict[str, Any]:
    decoder = narrow("decoder", "pred", 3 * PATCH**2, 1)
    return {"model": vit(positions="sincos") | decoder, "optimizer": OPTIMIZER, "epoch": 3}


def mae_encoder() -> dict[str, Any]:
    return {"model": vit(positions="sincos")}


def simmim() -> dict[str, Any]:
    encoder = vit(positions=None, beit=True) | relative_bias() | {"mask_token": torch.randn(1, 1, DIM)}
    head = {"decoder.0.weight": torch.randn(3 * PATCH**2, DIM, 1, 1), "decoder.0.bias": torch.randn(3 * PATCH**2)}
    return {"model": under("encoder.", encoder) | head, "optimizer": OPTIMIZER, "max_accuracy": 0.0}


def data2vec() -> dict[str, Any]:
    own = {"mask_token": torch.randn(1, 1, DIM), **linear("lm_head", DIM, DIM)}
    student, teacher = (vit(positions=None, beit=True) | relative_bias() | own for _ in range(2))
    return {"model": student, "model_ema": teacher, "optimizer": OPTIMIZER, "epoch": 3}


def data2vec2() -> dict[str, Any]:
    image = {
        "extra_tokens": torch.randn(1, 1, DIM),
        "local_encoder.proj.weight": torch.randn(DIM, 3, PATCH, PATCH),
        "local_encoder.proj.bias": torch.randn(DIM),
        "fixed_positional_encoder.positions": sincos_positions(GRID, DIM),
        **norm("context_encoder.norm", DIM),
        **blocks("context_encoder.blocks", DIM, 1),
        "decoder.blocks.0.0.weight": torch.randn(32, DIM // 4, 3, 3),
        "decoder.blocks.0.0.bias": torch.randn(32),
        "decoder.blocks.1.0.weight": torch.randn(32, 8, 3, 3),
        "decoder.blocks.1.0.bias": torch.randn(32),
        **linear("decoder.proj", 32, DIM),
    }
    student = under("modality_encoders.IMAGE.", image) | blocks("blocks", DIM, 2)
    return {"model": {**student, "_ema": blocks("blocks", DIM, 2)}, "cfg": {}, "last_optimizer_state": OPTIMIZER}


def cae() -> dict[str, Any]:
    encoder = vit(positions="sincos", beit=True)
    decoder = blocks("decoder_blocks", DIM, 1, beit=True) | norm("norm", DIM) | linear("head", DIM, 20)
    beside = {"mask_token": torch.randn(1, 1, DIM), "rd_pos_embed": torch.randn(1, 17, DIM)}
    beside |= under("regresser.", regressor("regressor_blocks", 2) | norm("norm", DIM)) | under("decoder.", decoder)
    return {"module": under("encoder.", encoder) | under("alignment_encoder.", encoder) | beside}


def regressor(name: str, depth: int) -> State:
    state: State = {}
    for i in range(depth):
        block = blocks("b", DIM, 1, beit=True)
        own = {f"{key}_cross": block[f"b.0.{key}"] for key in ("gamma_1", "gamma_2")}
        own |= {key.removeprefix("b.0.").replace("mlp", "mlp_cross"): t for key, t in block.items() if "mlp" in key}
        for part in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
            own |= norm(part, DIM)
        own |= {f"cross_attn.{part}.weight": torch.randn(DIM, DIM) for part in "qkv"}
        own |= {f"cross_attn.{part}_bias": torch.randn(DIM) for part in "qv"} | linear("cross_attn.proj", DIM, DIM)
        state |= under(f"{name}.{i}.", own)
    return state


def dino() -> dict[str, Any]:
    networks = {name: under("backbone.", vit()) | under("head.", head()) for name in ("student", "teacher")}
    state = {"optimizer": OPTIMIZER, "fp16_scaler": {"scale": 1.0}, "dino_loss": {"center": torch.randn(1, 20)}}
    return {"student": ddp(networks["student"]), "teacher": networks["teacher"], **state, "epoch": 4}


def ibot() -> dict[str, Any]:
    content = dino()
    content["student"]["module.backbone.masked_embed"] = torch.randn(1, DIM)
    content["teacher"]["backbone.masked_embed"] = torch.randn(1, DIM)
    content["ibot_loss"] = {"center": torch.randn(1, 20), "center2": torch.randn(1, 1, 20)}
    del content["dino_loss"]
    return content


def msn() -> dict[str, Any]:
    projector = linear("fc1", DIM, 24) | linear("fc2", 24, 24) | linear("fc3", 24, 12)
    for number in (1, 2):
        buffers = {
            "running_mean": torch.randn(24),
            "running_var": torch.ones(24),
            "num_batches_tracked": torch.tensor(3),
        }
        projector |= norm(f"bn{number}", 24) | under(f"bn{number}.", buffers)
    networks = {name: ddp(vit() | under("fc.", projector)) for name in ("encoder", "target_encoder")}
    return {**networks, "prototypes": torch.randn(16, 12), "opt": OPTIMIZER, "temperature": 0.1}


def moco_v3() -> dict[str, Any]:
    projector = linear("head.0", DIM, 24)
    networks = [under(f"module.{name}_encoder.", vit(positions="sincos") | projector) for name in ("base", "momentum")]
    state = networks[0] | networks[1] | linear("module.predictor.0", 24, 24)
    return {"epoch": 3, "arch": "vit_small", "state_dict": state, "optimizer": OPTIMIZER}


def vjepa() -> dict[str, Any]:
    encoders = {
        name: ddp(under("backbone.", vit(class_token=False, positions="sincos")))
        for name in ("encoder", "target_encoder")
    }
    return {**encoders, "predictor": ddp(under("backbone.", linear("predictor_embed", DIM, 8))), "opt": OPTIMIZER}


def timm() -> dict[str, Any]:
    return {**vit(), **linear("head", DIM, 10)}


# Name of the function -> method, our networks, evaluated one, tensors that are left out with a reason.
LAYOUTS = {
    "ijepa": ("ijepa", {"encoder", "target_encoder", "predictor"}, "target_encoder", 0),
    "mae": ("mae", {"encoder", "predictor"}, "encoder", 0),
    "mae_encoder": ("mae", {"encoder"}, "encoder", 0),
    "simmim": ("simmim", {"encoder", "predictor"}, "encoder", 0),
    "data2vec": ("data2vec", {"encoder", "target_encoder", "predictor"}, "encoder", 3),
    "data2vec2": ("data2vec2", {"encoder", "predictor"}, "encoder", 24),
    "cae": ("cae", {"encoder", "target_encoder", "predictor"}, "encoder", 1),
    "dino": ("dino", {"encoder", "target_encoder", "predictor"}, "target_encoder", 0),
    "ibot": ("ibot", {"encoder", "target_encoder", "predictor"}, "target_encoder", 1),
    "msn": ("msn", {"encoder", "target_encoder", "predictor"}, "target_encoder", 12),
    "moco_v3": ("moco_v3", {"encoder", "target_encoder"}, "encoder", 6),
    "vjepa": ("vjepa", {"encoder", "target_encoder"}, "target_encoder", 2),
    "timm": ("vit", {"encoder"}, "encoder", 2),
}
