"""verify_golden on MAE: the published files, files of other sizes computed here by hand, and what must not pass."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ssl_zoo.testing.golden import Fixture
from ssl_zoo.tools.verify_golden import main

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PUBLISHED = [GOLDEN / "mae_normpix.safetensors", GOLDEN / "mae_pixels.safetensors"]

# Everything differs from the published files.
CONFIG = {
    **{"img_size": 24, "patch_size": 6, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "mask_ratio": 0.6},
    **{"decoder_embed_dim": 24, "decoder_depth": 1, "decoder_num_heads": 2, "seed": 7},
}
NUM_IMAGES, NUM_PATCHES, NUM_VISIBLE = 3, 16, 6


# ---- The method once more, from its formulas, on plain tensors under official names. -------------------------------


def positions(dim: int) -> torch.Tensor:
    table = torch.zeros(1, 1 + NUM_PATCHES, dim, dtype=torch.float64)  # the class token's row stays zero
    quarter, side = dim // 4, CONFIG["img_size"] // CONFIG["patch_size"]
    for patch in range(NUM_PATCHES):
        for i in range(quarter):
            for part, coordinate in enumerate((patch % side, patch // side)):  # column, then row
                angle = coordinate / 10000 ** (i / quarter)
                table[0, 1 + patch, 2 * part * quarter + i] = math.sin(angle)
                table[0, 1 + patch, (2 * part + 1) * quarter + i] = math.cos(angle)
    return table.float()


def initial_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    dim, narrow, patch = CONFIG["embed_dim"], CONFIG["decoder_embed_dim"], CONFIG["patch_size"]
    shapes = {"patch_embed.proj": (dim, 3, patch, patch), "norm": (dim,), "decoder_embed": (narrow, dim)}
    shapes |= {"decoder_norm": (narrow,), "decoder_pred": (3 * patch * patch, narrow)}
    for name, width, depth in (("blocks", dim, CONFIG["depth"]), ("decoder_blocks", narrow, CONFIG["decoder_depth"])):
        inner = CONFIG["mlp_ratio"] * width
        for i in range(depth):
            parts = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,)}
            parts |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
            shapes |= {f"{name}.{i}.{part}": shape for part, shape in parts.items()}
    weights = {}
    for name, shape in shapes.items():
        noise = 0.2 * torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + noise if len(shape) == 1 else noise
        weights[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)
    weights["cls_token"] = torch.randn(1, 1, dim, generator=generator)
    weights["mask_token"] = torch.randn(1, 1, narrow, generator=generator)
    return weights


def transformer(x: torch.Tensor, w: dict, name: str, depth: int, heads: int) -> torch.Tensor:
    dim = x.shape[-1]
    for i in range(depth):

        def layer(part: str, i: int = i) -> tuple:
            return w[f"{name}.{i}.{part}.weight"], w[f"{name}.{i}.{part}.bias"]

        query, key, value = F.linear(F.layer_norm(x, (dim,), *layer("norm1"), 1e-6), *layer("attn.qkv")).chunk(3, -1)
        mixed = []
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
            mixed.append(((q @ k.transpose(1, 2)) / math.sqrt(dim // heads)).softmax(-1) @ v)
        x = x + F.linear(torch.cat(mixed, -1), *layer("attn.proj"))
        masked = F.gelu(F.linear(F.layer_norm(x, (dim,), *layer("norm2"), 1e-6), *layer("mlp.fc1")))
        x = x + F.linear(masked, *layer("mlp.fc2"))
    norm = name.removesuffix("blocks") + "norm"
    return F.layer_norm(x, (dim,), w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-6)


def handmade(normalize: bool) -> dict[str, torch.Tensor]:
    """All tensors of a fixture, as a program that knows nothing of ours would write them."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    trained = initial_weights(generator)
    stored = {f"init.{name}": weight.clone() for name, weight in trained.items()}
    fixed = {"pos_embed": positions(CONFIG["embed_dim"]), "decoder_pos_embed": positions(CONFIG["decoder_embed_dim"])}
    stored |= {f"init.{name}": table for name, table in fixed.items()}
    w = {name: weight.requires_grad_(True) for name, weight in trained.items()}
    images = torch.randn(NUM_IMAGES, 3, CONFIG["img_size"], CONFIG["img_size"], generator=generator)
    order = torch.stack([torch.randperm(NUM_PATCHES, generator=generator) for _ in images])
    keep, restore = order[:, :NUM_VISIBLE], order.argsort(1)

    patch, side = CONFIG["patch_size"], CONFIG["img_size"] // CONFIG["patch_size"]
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + fixed["pos_embed"][:, 1:]
    x = torch.stack([tokens[index] for tokens, index in zip(x, keep, strict=True)])
    x = torch.cat([w["cls_token"].expand(NUM_IMAGES, -1, -1), x], dim=1)
    latent = transformer(x, w, "blocks", CONFIG["depth"], CONFIG["num_heads"])
    y = F.linear(latent, w["decoder_embed.weight"], w["decoder_embed.bias"])
    y = torch.cat([y, w["mask_token"].expand(NUM_IMAGES, NUM_PATCHES - NUM_VISIBLE, -1)], dim=1)
    y = torch.stack([torch.cat([t[:1], t[1:][index]]) for t, index in zip(y, restore, strict=True)])
    y = y + fixed["decoder_pos_embed"]
    y = transformer(y, w, "decoder_blocks", CONFIG["decoder_depth"], CONFIG["decoder_num_heads"])
    pred = F.linear(y, w["decoder_pred.weight"], w["decoder_pred.bias"])[:, 1:]

    wanted = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, y, x)
    wanted = wanted.permute(0, 2, 3, 4, 5, 1).reshape(NUM_IMAGES, side * side, -1)
    if normalize:
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6) ** 0.5
    mask = (restore >= NUM_VISIBLE).float()
    loss = (((pred - wanted) ** 2).mean(-1) * mask).sum() / mask.sum()
    loss.backward()
    stored |= {"images": images, "ids_keep": keep, "ids_restore": restore, "mask": mask, "latent": latent}
    stored |= {"pred": pred, "loss": loss[None], "grad.mask_token": w["mask_token"].grad}
    stored |= {f"grad_norm.{name}": weight.grad.norm()[None] for name, weight in w.items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}


# ---- Tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return handmade(normalize=True)


@pytest.fixture
def write(tmp_path):
    def write_fixture(tensors: dict[str, torch.Tensor], config: dict | None = None) -> str:
        path = tmp_path / "fixture.safetensors"
        config = CONFIG | {"norm_pix_loss": True} if config is None else config
        save_file(tensors, path, metadata={"config": json.dumps(config)})
        return str(path)

    return write_fixture


def failing_rows(printed: str) -> set[str]:
    return {line.split()[0] for line in printed.splitlines() if " FAIL" in line}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_files_are_reproduced(path, capsys):
    assert main([str(path)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    assert rows >= {"latent", "pred", "loss", "grad_norm", "mask", "ids_keep", "init.pos_embed"}


@pytest.mark.parametrize("normalize", [True, False])
def test_a_file_of_other_sizes_is_reproduced(write, normalize, capsys):
    code = main([write(handmade(normalize), CONFIG | {"norm_pix_loss": normalize})])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "grad " in printed


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("init.blocks.1.attn.qkv.weight", "latent"),
        ("init.decoder_blocks.0.mlp.fc2.weight", "pred"),
        ("init.decoder_pos_embed", "init.decoder_pos_embed"),
        ("init.pos_embed", "init.pos_embed"),
        ("images", "loss"),
        ("latent", "latent"),
        ("pred", "pred"),
        ("loss", "loss"),
        ("grad_norm.cls_token", "grad_norm"),
        ("grad.mask_token", "grad"),
    ],
)
def test_a_changed_tensor_fails_and_its_quantity_is_named(write, tensors, capsys, name, quantity):
    # Not one constant for all entries: a shift of all output channels alike is undone by the next layer norm.
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    assert main([write(tensors | {name: tensors[name] + 1e-2 * noise})]) == 1
    assert quantity in failing_rows(capsys.readouterr().out)


def test_the_other_kind_of_pixels_fails_in_the_loss_alone_of_all_forward_quantities(write, capsys):
    tensors, config = load_file(PUBLISHED[0]), Fixture(PUBLISHED[0]).config
    assert main([write(tensors, config | {"norm_pix_loss": False})]) == 1
    assert failing_rows(capsys.readouterr().out) == {"loss", "grad_norm"}


@pytest.mark.parametrize(
    ("name", "change"), [("mask", lambda mask: 1 - mask), ("ids_keep", lambda keep: keep.roll(1, dims=1))]
)
def test_masks_that_contradict_the_order_of_patches_fail(write, tensors, capsys, name, change):
    assert main([write(tensors | {name: change(tensors[name])})]) == 1
    assert failing_rows(capsys.readouterr().out) == {name}


def test_a_quantity_that_is_not_recomputed_fails(write, tensors, capsys):
    assert main([write(tensors | {"entropy": torch.ones(1)})]) == 1
    assert "not recomputed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"images": None}, {}, "tensor images is missing"),
        ({"images": torch.zeros(3, 3, 18, 18)}, {}, "images has shape [3, 3, 18, 18]"),
        ({"init.norm.bias": None}, {}, "init: missing norm.bias"),
        ({"init.decoder_pred.bias": None}, {}, "init: missing decoder_pred.bias"),
        ({"ids_restore": torch.zeros(3, 16, dtype=torch.int64)}, {}, "needs a permutation of 0..15"),
        ({}, {"norm_pix_loss": "yes"}, "config.norm_pix_loss='yes'"),
        ({}, {"mask_ratio": 0.99}, "config.mask_ratio=0.99 leaves 0 of 16"),
        ({}, {"embed_dim": 50}, "backbone.embed_dim=50"),
        ({}, {"decoder_num_heads": 5}, "method.decoder_heads=5"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(write, tensors, capsys, change, config, message):
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    assert main([write(changed, CONFIG | {"norm_pix_loss": True} | config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and "fixture.safetensors: " in line
