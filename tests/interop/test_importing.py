"""Official layouts, from the tables of their names: every tensor is taken, left out with a reason, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_files
import pytest
import torch
from official_files import DIM, GRID, HEADS, LAYOUTS, OPTIMIZER, PATCH, ddp, linear, under, vit
from safetensors.torch import load_file, save_file

from ssl_zoo.interop.foreign_file import ForeignFileError
from ssl_zoo.interop.importing import ImportedWeights, Options, import_weights
from ssl_zoo.interop.official import from_pixel_shuffle
from ssl_zoo.method import METHODS, build_method
from ssl_zoo.nn import Positions, SincosLayout, ViT, sincos_positions
from ssl_zoo.plugins import discover
from ssl_zoo.targets import TARGETS

discover()
Import = Callable[..., ImportedWeights]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    def of(content: Any, name: str = "weights.pth", **options: Any) -> ImportedWeights:
        torch.save(content, tmp_path / name)
        return import_weights(tmp_path / name, Options(**{"num_heads": HEADS, "predictor_heads": 4, **options}))

    return of


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_official_file_imports_fully(imported: Import, name: str) -> None:
    method, networks, evaluated, num_left_out = LAYOUTS[name]
    weights = imported(getattr(official_files, name)())
    assert (weights.method, set(weights.networks), weights.evaluated) == (method, networks, evaluated)
    assert weights.num_tensors - weights.num_matched == num_left_out == sum(map(len, weights.left_out.values()))
    assert f"{weights.num_matched} of {weights.num_tensors} tensors matched" in "\n".join(weights.report())
    encoder = ViT(weights.backbone)
    for network in networks - {"predictor"}:
        encoder.load_state_dict(weights.networks[network])


@pytest.mark.parametrize("name", [name for name, (_, networks, *_) in LAYOUTS.items() if "predictor" in networks])
def test_the_networks_beside_the_encoder_load_into_the_method(imported: Import, name: str) -> None:
    weights = imported(getattr(official_files, name)())
    target = METHODS.get(name).default_targets
    targets = TARGETS.config_of(target)(**weights.target_settings) if target else None
    method = build_method(METHODS.config_of(name)(**weights.method_settings), weights.backbone, targets, seed=0)
    unknown = method.load_state_dict(weights.networks["predictor"], strict=False).unexpected_keys
    assert unknown == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cae_a", {"encoder.": "encoder.", "regresser.": "regresser.", "decoder.": "decoder."}),
        ("msn_a", {"student.": "encoder.", "teacher.": "target_encoder."}),
    ],
)
def test_names_of_the_reference_code_fill_every_network_of_the_method(
    imported: Import, name: str, parts: dict[str, str]
) -> None:
    tensors = load_file(Path(__file__).parents[1] / "golden" / f"{name}.safetensors")
    tensors = {key.removeprefix("init."): tensor for key, tensor in tensors.items() if key.startswith("init.")}
    prefixes = {key: next((start for start in parts if key.startswith(start)), "") for key in tensors}
    content = {parts.get(start, "") + key.removeprefix(start): tensors[key] for key, start in prefixes.items()}
    weights = imported(content, predictor_heads=None)
    target = METHODS.get(weights.method).default_targets
    targets = TARGETS.config_of(target)(**weights.target_settings) if target else None
    config = METHODS.config_of(weights.method)(**weights.method_settings)
    method = build_method(config, weights.backbone, targets, seed=0)
    missing = method.load_state_dict(weights.networks["predictor"], strict=False).missing_keys
    assert [key for key in missing if not key.startswith(("encoder.", "target_encoder.module.", "target."))] == []


def test_a_file_of_msn_has_the_sizes_of_its_head_and_prototypes(imported: Import) -> None:
    weights = imported(official_files.msn())
    expected = {"head_layers": 3, "head_dim": 24, "projection_dim": 12, "head_batch_norm": True, "num_prototypes": 16}
    assert weights.method_settings == expected
    beside = weights.networks["predictor"]
    assert beside["head.bn2.weight"].shape == (24,) and beside["target_head.module.fc3.weight"].shape == (12, 24)


def test_tensors_keep_their_values(imported: Import) -> None:
    content = official_files.ijepa()
    networks = imported(content).networks
    for network in ("encoder", "target_encoder"):
        given = content[network]
        assert all(given[f"module.{name}"].equal(tensor) for name, tensor in networks[network].items())
    embed = content["predictor"]["module.predictor_embed.weight"]
    assert networks["predictor"]["predictor.embed_in.weight"].equal(embed)


def test_simmims_head_predicts_pixels_in_the_order_of_patches(imported: Import) -> None:
    content = official_files.simmim()
    head = imported(content).networks["predictor"]["head.weight"]
    assert head.equal(from_pixel_shuffle(content["model"]["decoder.0.weight"]))


def test_half_precision_becomes_float32_with_exact_positions(imported: Import) -> None:
    half = {name: tensor.half() for name, tensor in vit(class_token=False, positions="sincos").items()}
    weights = imported({"target_encoder": ddp(half)})
    assert weights.backbone.positions is Positions.sincos
    assert weights.networks["target_encoder"]["pos_embed"].equal(sincos_positions(GRID, DIM))
    assert {tensor.dtype for tensor in weights.networks["target_encoder"].values()} == {torch.float32}


def test_the_layout_of_sincos_channels_is_recognised(imported: Import) -> None:
    state = vit() | {"pos_embed": sincos_positions(GRID, DIM, SincosLayout.row_first, num_prefix=1)}
    assert imported(state).backbone.sincos_layout is SincosLayout.row_first


def test_an_unusual_table_is_kept_as_learned_positions_and_reported(imported: Import) -> None:
    weights = imported({"encoder": vit(class_token=False)})
    assert weights.backbone.positions is Positions.learned
    assert any("pos_embed is not the sin-cos table" in line for line in weights.report())


def test_a_grid_that_is_not_square_is_found_by_its_sincos_values(imported: Import) -> None:
    state = vit(class_token=False) | {"pos_embed": sincos_positions((2, 8), DIM)}
    assert imported(state).backbone.grid == (2, 8)


def test_a_grid_that_may_be_several_needs_the_size_of_images(imported: Import) -> None:
    state = vit() | {"pos_embed": torch.randn(1, 13, DIM)}
    with pytest.raises(ForeignFileError, match="--image-size"):
        imported(state)
    assert imported(state, image_size=(24, 32)).backbone.grid == (3, 4)
    with pytest.raises(ForeignFileError, match="not 32x32"):
        imported(state, image_size=(32, 32))


def test_positions_without_a_row_for_the_class_token_get_one(imported: Import) -> None:
    state = vit() | {"pos_embed": torch.randn(1, 16, DIM), "reg_token": torch.randn(1, 4, DIM)}
    weights = imported(state)
    table = weights.networks["encoder"]["pos_embed"]
    assert weights.backbone.num_registers == 4
    assert table[:, 1:].equal(state["pos_embed"]) and not table[:, 0].any()


def test_an_unknown_width_needs_the_number_of_heads(imported: Import) -> None:
    with pytest.raises(ForeignFileError, match=r"the width 48 .* --num-heads N"):
        imported(vit(), num_heads=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, "encoder lacks norm.bias"),
        ({"norm.bias": torch.ones(DIM, dtype=torch.int64)}, r"norm.bias has shape \[48\] of torch.int64"),
        ({"blocks.99999999.norm1.bias": torch.ones(DIM)}, r"blocks\.2 is missing, but there is blocks\.99999999"),
        ({"norm.bias": None, "norm.weight": None}, "encoder lacks norm.weight, norm.bias"),
        ({"blocks.0.mlp.fc2.bias": None}, "encoder lacks blocks.0.mlp.fc2.bias"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(12)}, "blocks.1.attn.q_norm.weight is unknown"),
        ({"blocks.1.norm1.bias": torch.ones(3)}, r"blocks.1.norm1.bias has shape \[3\], not shape \[48\]"),
        ({"blocks.0.mlp.fc1.weight": None}, "blocks.0.mlp.fc1.weight is missing"),
        ({"patch_embed.proj.weight": torch.ones(DIM, 3, 2, PATCH, PATCH)}, "networks of videos"),
        ({"patch_embed.proj.weight": torch.ones(DIM, 3, 4, PATCH)}, "square ones"),
    ],
)
def test_tensors_that_are_missing_unknown_or_of_another_shape_are_refused_by_name(
    imported: Import, change: dict[str, Any], message: str
) -> None:
    state = {name: tensor for name, tensor in (vit() | change).items() if tensor is not None}
    with pytest.raises(ForeignFileError, match=message):
        imported({"model": state})


def test_a_partial_match_is_taken_when_it_is_asked_for_and_reported(imported: Import) -> None:
    state = vit() | {"surplus": torch.ones(2)}
    del state["norm.bias"]
    weights = imported(state, allow_partial=True)
    ViT(weights.backbone).load_state_dict(weights.networks["encoder"])
    report = "\n".join(weights.report())
    assert (
        "31 of 32" not in report and "encoder keeps its initial norm.bias" in report and "surplus is unknown" in report
    )


def test_names_with_another_beginning_are_refused(imported: Import) -> None:
    with pytest.raises(ForeignFileError, match=r"of no layout that is known .* wrong\.blocks"):
        imported(under("wrong.", vit()))
    with pytest.raises(ForeignFileError, match="holds no tensors"):
        imported({"epoch": 3, "optimizer": OPTIMIZER})


def test_one_network_of_a_file_can_be_taken_alone(imported: Import) -> None:
    weights = imported(official_files.ijepa(), network="encoder")
    assert (set(weights.networks), weights.evaluated) == ({"encoder"}, "encoder")
    with pytest.raises(ForeignFileError, match=r"--network target_encoder: .* has encoder"):
        imported(official_files.mae(), network="target_encoder")


def test_the_method_can_be_given_where_names_leave_it_open(imported: Import) -> None:
    assert imported(vit(), method="dino").method == "dino"
    assert imported(vit(), name="dino_vitbase16_pretrain.pth").method == "dino"
    with pytest.raises(ForeignFileError, match=r"--as dino: the names .* are those of ijepa"):
        imported(official_files.ijepa(), method="dino")


def test_a_bias_per_block_is_taken_where_all_blocks_have_the_same(imported: Import) -> None:
    state, table = vit(positions=None, beit=True), torch.randn(52, HEADS)
    own = {f"blocks.{i}.attn.relative_position_bias_table": table for i in range(2)}
    assert imported(state | own).networks["encoder"]["rel_pos_bias.relative_position_bias_table"].equal(table)
    own["blocks.1.attn.relative_position_bias_table"] = table + 1
    with pytest.raises(ForeignFileError, match="every block has a relative position bias of its own"):
        imported(state | own)


def test_an_index_of_relative_positions_in_another_order_is_refused(imported: Import) -> None:
    content = official_files.simmim()
    content["model"]["encoder.rel_pos_bias.relative_position_index"] += 1
    with pytest.raises(ForeignFileError, match=r"relative_position_index numbers the rows .* in another order"):
        imported(content)


def test_a_norm_of_pooled_features_is_left_out_with_the_final_norm(imported: Import) -> None:
    state = {name: tensor for name, tensor in vit().items() if not name.startswith("norm.")}
    weights = imported(state | linear("head", DIM, 10) | {"fc_norm.weight": torch.ones(DIM)})
    assert not weights.backbone.final_norm
    assert "norm.weight" not in weights.networks["encoder"]


def test_a_published_width_with_fewer_blocks_is_remarked(imported: Import) -> None:
    wide = {
        name: tensor.new_zeros([192 * n // 48 if n % 48 == 0 else n for n in tensor.shape])
        for name, tensor in vit().items()
    }
    assert any("2 blocks of width 192" in line for line in imported(wide).report())


def test_a_file_of_safetensors_is_read_regardless_of_its_name(tmp_path: Path) -> None:
    save_file(vit(positions="sincos"), tmp_path / "weights.bin")
    assert import_weights(tmp_path / "weights.bin", Options(num_heads=HEADS)).method == "mae"
