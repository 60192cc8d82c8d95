"""verify_golden on data2vec: the published file, files of other sizes computed by hand, and what must not pass."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_files import changed
from safetensors.torch import load_file, save_file

from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[2] / "golden" / "data2vec_a.safetensors"

# Everything differs from the published file. The momentum grows over three steps and stays what it is there until the
# second epoch ends; with most of these values the reference's index table is truncated.
CONFIG = {
    **{"method": "data2vec 1.0", "image_size": 24, "patch_size": 6, "dim": 24, "depth": 3, "heads": 3, "batch": 3},
    **{"target_layers": [1, 2], "l1_beta": 0.3, "mlp_ratio": 2, "norm_eps": 1e-6, "seed": 3},
    **{"lr": 1e-3, "min_lr": 1e-4, "warmup_epochs": 1.5, "epochs": 4, "steps_per_epoch": 2, "steps": 7},
    **{"wd": 0.05, "wd_end": 0.2, "clip": 0.3, "ema_start_at": 3, "ema_init": 0.6, "ema": 0.9},
    "optimizer": "AdamW betas (0.9, 0.98) eps 1e-8",
}
SIDE, NUM_PATCHES, DIM = 4, 16, CONFIG["dim"]
LEARNING_RATES = [1e-3 * step / 2 for step in range(3)]
LEARNING_RATES += [1e-4 + 4.5e-4 * (1 + math.cos(math.pi * step / 5)) for step in range(4)]
WEIGHT_DECAYS = [0.2 - 0.075 * (1 + math.cos(math.pi * step / 8)) for step in range(7)]
MOMENTA = [0.6, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9]


# ---- The method once more, from its formulas, on plain tensors under official names. -------------------------------


def index_table() -> torch.Tensor:
    table = torch.empty(1 + NUM_PATCHES, 1 + NUM_PATCHES, dtype=torch.int64)
    span = 2 * SIDE - 1
    table[0, :], table[:, 0], table[0, 0] = span**2, span**2 + 1, span**2 + 2
    for i in range(NUM_PATCHES):
        for j in range(NUM_PATCHES):
            down, right = i // SIDE - j // SIDE + SIDE - 1, i % SIDE - j % SIDE + SIDE - 1
            table[1 + i, 1 + j] = down * span + right
    return table


def initial_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    inner, patch = CONFIG["mlp_ratio"] * DIM, CONFIG["patch_size"]
    shapes = {"patch_embed.proj.weight": (DIM, 3, patch, patch), "patch_embed.proj.bias": (DIM,)}
    shapes |= {"cls_token": (1, 1, DIM), "mask_token": (1, 1, DIM), "norm.weight": (DIM,), "norm.bias": (DIM,)}
    shapes |= {"rel_pos_bias.relative_position_bias_table": ((2 * SIDE - 1) ** 2 + 3, CONFIG["heads"])}
    shapes |= {"lm_head.weight": (DIM, DIM), "lm_head.bias": (DIM,)}
    for i in range(CONFIG["depth"]):
        parts = {"norm1.weight": (DIM,), "norm1.bias": (DIM,), "norm2.weight": (DIM,), "norm2.bias": (DIM,)}
        parts |= {"attn.qkv.weight": (3 * DIM, DIM), "attn.q_bias": (DIM,), "attn.v_bias": (DIM,)}
        parts |= {"attn.proj.weight": (DIM, DIM), "attn.proj.bias": (DIM,), "gamma_1": (DIM,), "gamma_2": (DIM,)}
        parts |= {"mlp.fc1.weight": (inner, DIM), "mlp.fc1.bias": (inner,)}
        parts |= {"mlp.fc2.weight": (DIM, inner), "mlp.fc2.bias": (DIM,)}
        shapes |= {f"blocks.{i}.{part}": shape for part, shape in parts.items()}
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma_1", "gamma_2")):
            weight += 1
    return weights


def encode(images: torch.Tensor, w: dict, index: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The outputs of all blocks, the class token first."""
    heads = CONFIG["heads"]
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=CONFIG["patch_size"])
    x = x.flatten(2).transpose(1, 2)
    if mask is not None:
        shown = (~mask).flatten(1)[..., None].to(x.dtype)
        x = x * shown + w["mask_token"] * (1 - shown)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    bias = w["rel_pos_bias.relative_position_bias_table"][index]  # (query, key, head)
    outputs = []
    for i in range(CONFIG["depth"]):
        b = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (DIM,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        query, key, value = (y @ b["attn.qkv.weight"].T).chunk(3, -1)
        query, value, mixed = query + b["attn.q_bias"], value + b["attn.v_bias"], []
        for h, (q, k, v) in enumerate(
            zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True)
        ):
            logits = (q @ k.transpose(1, 2)) / math.sqrt(DIM // heads) + bias[..., h]
            mixed.append(logits.softmax(-1) @ v)
        x = x + b.get("gamma_1", 1) * F.linear(torch.cat(mixed, -1), b["attn.proj.weight"], b["attn.proj.bias"])
        y = F.layer_norm(x, (DIM,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + b.get("gamma_2", 1) * F.linear(y, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
        outputs.append(x)
    return outputs


def smooth_l1(difference: torch.Tensor, beta: float) -> torch.Tensor:
    size = difference.abs()
    return torch.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta).mean()


def handmade(
    *,
    layer_scale: bool = True,
    clip: float | None = CONFIG["clip"],
    target_layers: Sequence[int] = CONFIG["target_layers"],
    own_teacher: bool = False,
) -> dict[str, torch.Tensor]:
    """All tensors of a fixture, as a program that knows nothing of ours would write them."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    w, index = initial_weights(generator), index_table()
    w = {name: t for name, t in w.items() if layer_scale or "gamma" not in name}
    index_name = "rel_pos_bias.relative_position_index"
    teacher, teacher_index = initial_weights(generator) if own_teacher else copy.deepcopy(w), index.clone()
    stored = {f"init.student.{name}": t.clone() for name, t in {**w, index_name: index}.items()}
    if own_teacher:
        stored |= {f"init.teacher.{name}": t.clone() for name, t in {**teacher, index_name: index}.items()}
    moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in w.items()}
    history = {key: [] for key in ("loss", "lr", "weight_decay", "grad_norm", "ema_decay")}
    for step in range(CONFIG["steps"]):
        images = torch.randn(CONFIG["batch"], 3, 24, 24, generator=generator)
        mask = torch.rand(CONFIG["batch"], SIDE, SIDE, generator=generator) < 0.6  # ragged
        stored |= {f"step{step}.images": images, f"step{step}.mask": mask}
        blocks = [block[:, 1:] for block in encode(images, teacher, teacher_index)]
        normed = [F.layer_norm(blocks[layer], (DIM,)) for layer in target_layers]
        targets = F.layer_norm(sum(normed) / len(normed), (DIM,))[mask.flatten(1)]
        leaves = {name: t.clone().requires_grad_(True) for name, t in w.items()}
        tokens = F.layer_norm(
            encode(images, leaves, index, mask)[-1], (DIM,), leaves["norm.weight"], leaves["norm.bias"], 1e-6
        )
        predictions = F.linear(tokens[:, 1:][mask.flatten(1)], leaves["lm_head.weight"], leaves["lm_head.bias"])
        loss = smooth_l1(predictions - targets, CONFIG["l1_beta"])
        loss.backward()
        gradients = {name: t.grad for name, t in leaves.items()}
        if step == 0:
            stored |= {f"step0.teacher_block.{i}": block for i, block in enumerate(blocks)}
            stored |= {"step0.targets": targets, "step0.predictions": predictions.detach()}
            stored |= {f"step0.grad_norm.{name}": g.norm()[None] for name, g in gradients.items()}
            stored["step0.grad.mask_token"] = gradients["mask_token"]
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        scale = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
        lr, decay, momentum = LEARNING_RATES[step], WEIGHT_DECAYS[step], MOMENTA[step]
        for name, t in w.items():
            g, (first, second) = gradients[name] * scale, moments[name]
            if t.ndim > 1 and not name.endswith(".bias") and name != "cls_token":
                t.mul_(1 - lr * decay)
            first.mul_(0.9).add_(g, alpha=0.1)
            second.mul_(0.98).addcmul_(g, g, value=0.02)
            root = (second / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8
            t.sub_(lr * first / (1 - 0.9 ** (step + 1)) / root)
            teacher[name] = momentum * teacher[name] + (1 - momentum) * t
        teacher_index = (momentum * teacher_index + (1 - momentum) * index).long()
        for key, value in zip(history, (loss.item(), lr, decay, norm.item(), momentum), strict=True):
            history[key].append(value)
    assert not torch.equal(teacher_index, index)
    stored |= {f"final.student.{name}": t for name, t in {**w, index_name: index}.items()}
    stored |= {f"final.teacher.{name}": t for name, t in {**teacher, index_name: teacher_index}.items()}
    stored |= {f"history.{key}": torch.tensor(values, dtype=torch.float64) for key, values in history.items()}
    return {name: t.detach().clone().contiguous() for name, t in stored.items()}


# ---- Tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return handmade()


@pytest.fixture
def write(tmp_path):
    def write_fixture(tensors: dict[str, torch.Tensor], config: dict | None = None) -> str:
        path = tmp_path / "handmade.safetensors"
        save_file(tensors, path, {"config": json.dumps(CONFIG | (config or {}))})
        return str(path)

    return write_fixture


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    assert "final.teacher" in capsys.readouterr().out


def test_a_file_of_other_sizes_with_growing_decay_and_momentum_is_reproduced(write, tensors, capsys) -> None:
    code = main([write(tensors)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    rows = {line.split()[0] for line in printed.splitlines() if " ok" in line}
    assert {"step0.teacher_block", "step0.targets", "history.ema_decay", "history.weight_decay"} <= rows


@pytest.mark.parametrize(("target_layers", "own_teacher"), [([0, 2], False), ([1, 2], True), ([0, 2], True)])
def test_files_with_other_target_layers_or_a_teacher_of_their_own_are_reproduced(
    write, capsys, target_layers: list[int], own_teacher: bool
) -> None:
    made = handmade(target_layers=target_layers, own_teacher=own_teacher)
    code = main([write(made, {"target_layers": target_layers})])
    assert code == 0, capsys.readouterr().out
    without = {name: t for name, t in made.items() if not name.startswith("init.teacher.")}
    assert main([write(without, {"target_layers": [1, 2]})]) == 1  # both settings matter


def test_a_file_without_layer_scale_and_clipping_is_reproduced(write, capsys) -> None:
    code = main([write(handmade(layer_scale=False, clip=None), {"clip": None})])
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "config",
    [{"ema_start_at": 2}, {"ema_init": 0.5}, {"wd_end": 0.05}, {"warmup_epochs": 1}, {"l1_beta": 2.0}, {"clip": None}],
)
def test_each_setting_of_the_handmade_file_matters(write, tensors, config: dict) -> None:
    assert main([write(tensors, config)]) == 1


def test_an_index_table_that_the_average_left_alone_is_not_the_references(write, tensors) -> None:
    name = "rel_pos_bias.relative_position_index"
    assert main([write(tensors | {f"final.teacher.{name}": tensors[f"init.student.{name}"].clone()})]) == 1


@pytest.mark.parametrize(
    ("name", "factor"),
    [("step0.targets", 1.001), ("final.teacher.blocks.2.mlp.fc1.weight", 1.01), ("history.ema_decay", 0.999)],
)
def test_other_numbers_do_not_pass(tmp_path: Path, name: str, factor: float) -> None:
    assert main([changed(PUBLISHED, tmp_path, {name: load_file(PUBLISHED)[name] * factor})]) == 1


@pytest.mark.parametrize("config", [{"l1_beta": 0.5}, {"target_layers": [2, 3]}, {"lr": 1e-3}, {"clip": 3.0}])
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.student.lm_head.bias": None}, {}, "missing bias"),
        ({"init.student.mask_token": None}, {}, "init.student.mask_token"),
        ({"init.student.norm.bias": None}, {}, "missing norm.bias"),
        ({}, {"target_layers": [0, 4]}, "config.target_layers"),
        ({}, {"heads": 5}, "backbone.num_heads=5"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
