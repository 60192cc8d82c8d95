"""verify_golden on I-JEPA: the published file, a file of other sizes computed here by hand, and what must not pass."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ssl_zoo.testing.golden import Fixture
from ssl_zoo.tools.verify_golden import main

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ROOT / "tests" / "golden" / "ijepa_a.safetensors"

# Everything differs from the published file; the number of contexts above all.
CONFIG = {
    **{
        "img": 24,
        "patch": 6,
        "dim": 48,
        "depth": 2,
        "heads": 3,
        "pdim": 24,
        "pdepth": 1,
        "B": 3,
        "nenc": 2,
        "npred": 3,
    },
    **{"seed": 7, "steps": 5, "iterations_per_epoch": 3, "epochs": 3, "warmup_epochs": 1, "start_lr": 1e-4, "lr": 2e-3},
    **{"final_lr": 1e-5, "wd": 0.1, "final_wd": 0.3, "ema0": 0.99, "ema1": 0.999},
}
TRAINED_STEPS = CONFIG["iterations_per_epoch"] * CONFIG["epochs"]


# ---- The method once more, from its formulas, on plain tensors under official names. -------------------------------


def positions(side: int, dim: int) -> torch.Tensor:
    table = torch.zeros(1, side * side, dim, dtype=torch.float64)
    quarter = dim // 4
    for patch in range(side * side):
        for i in range(quarter):
            for part, coordinate in enumerate((patch % side, patch // side)):  # column, then row
                angle = coordinate / 10000 ** (i / quarter)
                table[0, patch, 2 * part * quarter + i] = math.sin(angle)
                table[0, patch, (2 * part + 1) * quarter + i] = math.cos(angle)
    return table.float()


def initial_weights(generator: torch.Generator) -> tuple[dict, dict]:
    def block(name: str, dim: int) -> dict:
        shapes = {"norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm2": (dim,)}
        return {f"{name}.{k}": s for k, s in {**shapes, "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}.items()}

    def sample(layers: dict) -> dict:
        weights = {}
        for name, shape in layers.items():
            noise = 0.2 * torch.randn(shape, generator=generator)
            weights[f"{name}.weight"] = 1 + noise if len(shape) == 1 else noise
            weights[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)
        return weights

    dim, pdim, patch, side = CONFIG["dim"], CONFIG["pdim"], CONFIG["patch"], CONFIG["img"] // CONFIG["patch"]
    blocks = [block(f"blocks.{i}", dim) for i in range(CONFIG["depth"])]
    encoder = sample(
        {"patch_embed.proj": (dim, 3, patch, patch), "norm": (dim,)} | {k: s for b in blocks for k, s in b.items()}
    )
    blocks = [block(f"predictor_blocks.{i}", pdim) for i in range(CONFIG["pdepth"])]
    outer = {"predictor_embed": (pdim, dim), "predictor_norm": (pdim,), "predictor_proj": (dim, pdim)}
    predictor = sample(outer | {k: s for b in blocks for k, s in b.items()})
    predictor["mask_token"] = torch.randn(1, 1, pdim, generator=generator)
    return encoder | {"pos_embed": positions(side, dim)}, predictor | {"predictor_pos_embed": positions(side, pdim)}


def transformer(x: torch.Tensor, w: dict, name: str, norm: str) -> torch.Tensor:
    dim, heads = x.shape[-1], CONFIG["heads"]
    for i in range(sum(key.startswith(name) and key.endswith("norm1.bias") for key in w)):

        def layer(part: str, i: int = i) -> tuple:
            return w[f"{name}.{i}.{part}.weight"], w[f"{name}.{i}.{part}.bias"]

        query, key, value = F.linear(F.layer_norm(x, (dim,), *layer("norm1"), 1e-6), *layer("attn.qkv")).chunk(3, -1)
        mixed = []
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
            mixed.append(((q @ k.transpose(1, 2)) / math.sqrt(dim // heads)).softmax(-1) @ v)
        x = x + F.linear(torch.cat(mixed, -1), *layer("attn.proj"))
        masked = F.gelu(F.linear(F.layer_norm(x, (dim,), *layer("norm2"), 1e-6), *layer("mlp.fc1")))
        x = x + F.linear(masked, *layer("mlp.fc2"))
    return F.layer_norm(x, (dim,), w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-6)


def pick(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[i] for row, i in zip(tokens.expand(len(index), -1, -1), index, strict=True)])


def encode(images: torch.Tensor, w: dict, index: torch.Tensor | None = None) -> torch.Tensor:
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=CONFIG["patch"])
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    return transformer(x if index is None else pick(x, index), w, "blocks", "norm")


def predict(features: torch.Tensor, w: dict, context: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    known = F.linear(features, w["predictor_embed.weight"], w["predictor_embed.bias"])
    known = known + pick(w["predictor_pos_embed"], context)
    x = torch.cat([known, w["mask_token"] + pick(w["predictor_pos_embed"], target)], dim=1)
    x = transformer(x, w, "predictor_blocks", "predictor_norm")[:, context.shape[1] :]
    return F.linear(x, w["predictor_proj.weight"], w["predictor_proj.bias"])


def rates(step: int) -> dict[str, float]:
    t, warmup = step + 1, CONFIG["warmup_epochs"] * CONFIG["iterations_per_epoch"]
    lr = CONFIG["start_lr"] + t / warmup * (CONFIG["lr"] - CONFIG["start_lr"])
    if t >= warmup:
        turn = (1 + math.cos(math.pi * (t - warmup) / (TRAINED_STEPS - warmup))) / 2
        lr = CONFIG["final_lr"] + (CONFIG["lr"] - CONFIG["final_lr"]) * turn
    wd = CONFIG["final_wd"] + (CONFIG["wd"] - CONFIG["final_wd"]) * (1 + math.cos(math.pi * t / TRAINED_STEPS)) / 2
    return {"lr": lr, "wd": wd, "momentum": CONFIG["ema0"] + step * (CONFIG["ema1"] - CONFIG["ema0"]) / TRAINED_STEPS}


def handmade() -> dict[str, torch.Tensor]:
    """All tensors of a fixture, as a program that knows nothing of ours would write them."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    encoder, predictor = initial_weights(generator)
    teacher = {name: weight.clone() for name, weight in encoder.items()}
    stored = {f"init.encoder.{k}": v.clone() for k, v in encoder.items()}
    stored |= {f"init.predictor.{k}": v.clone() for k, v in predictor.items()}
    trained = {k: v for k, v in encoder.items() if k != "pos_embed"}
    trained |= {f"predictor/{k}": v for k, v in predictor.items() if k != "predictor_pos_embed"}
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in trained.items()}
    history = {"loss": [], "lr": [], "wd": [], "momentum": []}
    num_patches = (CONFIG["img"] // CONFIG["patch"]) ** 2
    for step in range(CONFIG["steps"]):
        images = torch.randn(CONFIG["B"], 3, CONFIG["img"], CONFIG["img"], generator=generator)
        order = torch.stack([torch.randperm(num_patches, generator=generator) for _ in images])
        contexts = [order[:, 2 * j : 2 * j + 4 + step % 2].sort().values for j in range(CONFIG["nenc"])]
        targets = [order[:, 9 + i : 12 + i + step % 2].sort().values for i in range(CONFIG["npred"])]
        full = F.layer_norm(encode(images, teacher), (CONFIG["dim"],))
        for weight in trained.values():
            weight.requires_grad_(True).grad = None
        features = [encode(images, encoder, context) for context in contexts]
        pairs = [(i, j) for i in range(len(targets)) for j in range(len(contexts))]
        wanted = torch.cat([pick(full, targets[i]) for i, _ in pairs])
        guess = torch.cat([predict(features[j], predictor, contexts[j], targets[i]) for i, j in pairs])
        far = (guess - wanted).abs()
        loss = torch.where(far < 1, far**2 / 2, far - 0.5).mean()
        loss.backward()
        stored |= {f"step{step}.images": images}
        stored |= {f"step{step}.context_idx.{j}": index for j, index in enumerate(contexts)}
        stored |= {f"step{step}.target_idx.{i}": index for i, index in enumerate(targets)}
        if step == 0:
            stored |= {
                "step0.context_features": torch.cat(features),
                "step0.targets": wanted,
                "step0.predictions": guess,
            }
            stored |= {f"step0.grad_norm.{k}": w.grad.norm()[None] for k, w in trained.items()}
            stored["step0.grad.predictor/mask_token"] = predictor["mask_token"].grad.clone()
        now = rates(step)
        with torch.no_grad():
            for name, weight in trained.items():
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * weight.grad)
                second.mul_(0.999).add_(0.001 * weight.grad**2)
                weight.mul_(1 - now["lr"] * now["wd"] * (weight.ndim > 1))
                root = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                weight.sub_(now["lr"] * first / (1 - 0.9 ** (step + 1)) / root)
            for name, average in teacher.items():
                average.mul_(now["momentum"]).add_((1 - now["momentum"]) * encoder[name])
        for key, value in {"loss": loss.item(), **now}.items():
            history[key].append(value)
    stored |= {f"final.encoder.{k}": v for k, v in encoder.items()}
    stored |= {f"final.target_encoder.{k}": v for k, v in teacher.items()}
    stored |= {f"history.{k}": torch.tensor(v, dtype=torch.float64) for k, v in history.items()}
    return {name: tensor.detach().contiguous() for name, tensor in stored.items()}


# ---- Tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return handmade()


@pytest.fixture
def write(tmp_path):
    def write_fixture(tensors: dict[str, torch.Tensor], config: dict | None = None) -> str:
        path = tmp_path / "fixture.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(CONFIG if config is None else config)})
        return str(path)

    return write_fixture


def failing_rows(printed: str) -> set[str]:
    return {line.split()[0] for line in printed.splitlines() if " FAIL" in line}


def test_the_published_file_is_reproduced(capsys):
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    features = {"step0.context_features", "step0.targets", "step0.predictions", "step0.grad_norm"}
    history = {"history.loss", "history.lr", "history.wd", "history.momentum"}
    assert rows >= features | history | {"final.encoder", "final.target_encoder"}


def test_a_file_of_other_sizes_with_two_contexts_and_three_targets_is_reproduced(write, tensors, capsys):
    code = main([write(tensors)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "step0.grad " in printed


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("init.predictor.predictor_blocks.0.mlp.fc2.weight", "step0.predictions"),
        ("init.encoder.blocks.1.attn.qkv.weight", "step0.context_features"),
        ("init.predictor.predictor_pos_embed", "init.predictor.predictor_pos_embed"),
        ("step2.images", "history.loss"),
        ("step0.context_features", "step0.context_features"),
        ("step0.targets", "step0.targets"),
        ("step0.grad_norm.predictor/mask_token", "step0.grad_norm"),
        ("step0.grad.predictor/mask_token", "step0.grad"),
        ("history.lr", "history.lr"),
        ("history.momentum", "history.momentum"),
        ("final.encoder.norm.bias", "final.encoder"),
        ("final.target_encoder.norm.bias", "final.target_encoder"),
    ],
)
def test_a_changed_tensor_fails_and_its_quantity_is_named(write, tensors, capsys, name, quantity):
    # Not one constant for all entries: a shift of all output channels alike is undone by the next layer norm.
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    changed = tensors | {name: tensors[name] + 1e-2 * noise}
    assert main([write(changed)]) == 1
    assert quantity in failing_rows(capsys.readouterr().out)


def test_contexts_are_told_apart(write, tensors, capsys):
    first, second = "step0.context_idx.0", "step0.context_idx.1"
    assert main([write(tensors | {first: tensors[second], second: tensors[first]})]) == 1
    assert {"step0.context_features", "step0.predictions"} <= failing_rows(capsys.readouterr().out)


def test_a_target_encoder_that_stood_still_fails(write, capsys):
    tensors, config = load_file(PUBLISHED), Fixture(PUBLISHED).config
    initial = {name.removeprefix("init."): t.clone() for name, t in tensors.items() if name.startswith("init.encoder.")}
    still = {f"final.target_{name}": weight for name, weight in initial.items()}
    assert main([write(tensors | still, config)]) == 1
    assert failing_rows(capsys.readouterr().out) == {"final.target_encoder"}


@pytest.mark.parametrize(("third", "code"), [(0, 1), (1, 0), (2, 1)])
def test_of_packed_biases_only_the_keys_are_left_out(write, tensors, third, code):
    name, dim = "final.encoder.blocks.0.attn.qkv.bias", CONFIG["dim"]
    changed = tensors[name].clone()
    changed[third * dim : (third + 1) * dim] += 1e-3
    assert main([write(tensors | {name: changed})]) == code


@pytest.mark.parametrize(
    ("noise", "code"), [({}, 1), ({"final.encoder": 1e-4}, 0), ({"final.target_encoder": 1e-4}, 1)]
)
def test_final_weights_may_differ_by_five_times_the_noise_that_the_file_tells(write, tensors, noise, code):
    name = "final.encoder.norm.bias"
    assert main([write(tensors | {name: tensors[name] + 4e-4}, CONFIG | {"float_noise": noise})]) == code


def test_a_stored_nan_fails(write, tensors, capsys):
    assert main([write(tensors | {"history.loss": tensors["history.loss"] * math.nan})]) == 1
    assert failing_rows(capsys.readouterr().out) == {"history.loss"}


def test_a_quantity_that_is_not_recomputed_fails(write, tensors, capsys):
    assert main([write(tensors | {"step0.entropy": torch.ones(1)})]) == 1
    assert "not recomputed" in capsys.readouterr().out


def test_a_tensor_of_another_shape_fails(write, tensors, capsys):
    assert main([write(tensors | {"step0.targets": tensors["step0.targets"][1:]})]) == 1
    assert failing_rows(capsys.readouterr().out) == {"step0.targets"}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"step1.images": None}, {}, "tensor step1.images is missing"),
        ({"init.encoder.norm.bias": None}, {}, "init.encoder: missing norm.bias"),
        ({"step0.context_idx.1": torch.zeros(3, 2, dtype=torch.int64)}, {}, "needs one shape"),
        ({"step0.target_idx.0": torch.full((3, 3), 16)}, {}, "patch indices in 0..15"),
        ({}, {"depth": None}, "config.depth=None"),
        ({}, {"dim": 50}, "backbone.embed_dim=50"),
        ({}, {"dim": 60}, "init.encoder: "),
        ({}, {"loss": "l2"}, "config.loss='l2'"),
        ({"init.predictor.predictor_pos_embed": None}, {"method": "MAE"}, "has the method 'MAE'. Known kinds: "),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(write, tensors, capsys, change, config, message):
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    assert main([write(changed, CONFIG | config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert "fixture.safetensors: " in line


def test_a_truncated_file_exits_2_with_one_line(tmp_path, capsys):
    path = tmp_path / "half.safetensors"
    path.write_bytes(PUBLISHED.read_bytes()[: PUBLISHED.stat().st_size // 2])
    assert main([str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path}: truncated" in line


def test_a_file_without_config_exits_2(tmp_path, capsys):
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.ones(1)}, path)
    assert main([str(path)]) == 2
    assert "the metadata entry 'config' is missing" in capsys.readouterr().err


def test_a_missing_file_exits_2_and_the_others_are_still_verified(write, tensors, capsys):
    assert main(["/no/such.safetensors", write(tensors)]) == 2
    printed = capsys.readouterr()
    assert printed.err == "verify_golden: /no/such.safetensors: no such file\n"
    assert "quantities within tolerance" in printed.out


@pytest.mark.slow
def test_the_tool_runs_in_a_bare_checkout(tmp_path):
    for folder in ("ssl_zoo", "methods", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", tmp_path)
    command = [sys.executable, str(tmp_path / "tools" / "verify_golden.py"), str(PUBLISHED)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "history.loss" in done.stdout
