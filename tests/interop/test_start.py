"""Starting from weights: what comes from where, and that features are those of the source."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import official_files
import pytest
import torch
from torch import Tensor

from ssl_zoo.interop.import_folder import write_import
from ssl_zoo.interop.importing import Options, import_weights
from ssl_zoo.interop.start import InitError, described, open_source, plan_start, start_from
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import Positions, ViT, ViTConfig
from ssl_zoo.plugins import discover
from ssl_zoo.targets import TARGETS

discover()
BACKBONE = ViTConfig(image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
SETTINGS: dict[str, dict[str, Any]] = {
    "ijepa": {"predictor_dim": 32, "predictor_depth": 1},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
    "dino": {"num_prototypes": 20, "head_dim": 24, "bottleneck_dim": 12},
    "simmim": {},
}


def method_of(name: str, backbone: ViTConfig = BACKBONE, **settings: Any) -> Method:
    target = METHODS.get(name).default_targets
    targets = TARGETS.config_of(target)() if target else None
    config = METHODS.config_of(name)(**{**SETTINGS[name], **settings})
    return build_method(config, backbone, targets, seed=1)


def imported(folder: Path, name: str, **options: Any) -> Path:
    """Import an official file and return the folder."""
    torch.save(getattr(official_files, name)(), folder / f"{name}.pth")
    options = {"num_heads": 4, "predictor_heads": 4, **options}
    write_import(import_weights(folder / f"{name}.pth", Options(**options)), folder / name)
    return folder / name


def features(encoder: ViT, size: int = 32) -> Tensor:
    return encoder.eval().patches(encoder(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))))


def source_encoder(folder: Path, network: str) -> ViT:
    source = open_source(folder)
    encoder = ViT(source.backbone)
    encoder.load_state_dict(source.networks[network])
    return encoder


@torch.no_grad()
def test_a_method_continues_from_all_networks_of_its_own_kind(tmp_path: Path) -> None:
    folder = imported(tmp_path, "ijepa")
    method = method_of("ijepa")
    record = start_from(method, folder)
    own = {"encoder": method.encoder, "target_encoder": method.eval_encoder()}
    for network, encoder in own.items():
        expected = features(source_encoder(folder, network))
        torch.testing.assert_close(features(encoder), expected, rtol=0, atol=1e-6)
    beside = open_source(folder).networks["predictor"]
    assert all(method.state_dict()[name].equal(tensor) for name, tensor in beside.items())
    assert record["loaded"] == {"encoder": "encoder", "target_encoder": "target_encoder", "predictor": "predictor"}
    assert record["fresh"] == [] and len(record["sha256"]["encoder.safetensors"]) == 64


@torch.no_grad()
def test_mae_weights_start_i_jepa_and_back(tmp_path: Path) -> None:
    folder = imported(tmp_path, "mae")
    method = method_of("ijepa")
    before = {name: tensor.clone() for name, tensor in method.predictor.state_dict().items()}
    record = start_from(method, folder)
    assert record["loaded"] == {"encoder": "encoder", "target_encoder": "encoder"}
    assert record["fresh"] == ["predictor"] and record["changes"] == ["class token dropped"]
    assert all(before[name].equal(tensor) for name, tensor in method.predictor.state_dict().items())
    for encoder in (method.encoder, method.eval_encoder()):
        assert encoder.blocks[1].mlp.fc1.weight.equal(
            open_source(folder).networks["encoder"]["blocks.1.mlp.fc1.weight"]
        )
    back = method_of("mae")
    record = start_from(back, imported(tmp_path, "ijepa"))
    assert record["loaded"] == {"encoder": "target_encoder"}
    expected = features(source_encoder(tmp_path / "ijepa", "target_encoder"))
    torch.testing.assert_close(features(back.encoder), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_official_file_starts_a_run_without_an_import(tmp_path: Path) -> None:
    content = official_files.mae_encoder()
    table = content["model"]
    wide = {
        name: torch.randn([192 * n // 48 if n % 48 == 0 else n for n in tensor.shape]) for name, tensor in table.items()
    }
    torch.save({"model": wide}, tmp_path / "mae.pth")
    method = method_of(
        "mae", replace(BACKBONE, embed_dim=192, num_heads=3, class_token=True, positions=Positions.learned)
    )
    record = start_from(method, tmp_path / "mae.pth")
    assert (record["kind"], record["loaded"], record["fresh"]) == ("file", {"encoder": "encoder"}, ["decoder"])
    assert method.encoder.cls_token.equal(wide["cls_token"])


@torch.no_grad()
def test_a_run_at_another_size_of_images_recomputes_positions(tmp_path: Path) -> None:
    folder = imported(tmp_path, "ijepa")
    method = method_of("ijepa", replace(BACKBONE, image_size=48))
    record = start_from(method, folder)
    expected = features(source_encoder(folder, "encoder"), 48)
    torch.testing.assert_close(features(method.encoder, 48), expected, rtol=0, atol=1e-6)
    assert record["changes"] == ["positions recomputed for 48x48 px instead of 32x32"]
    assert record["fresh"] == [] and method.predictor.pos_embed.shape[1] == 36


@pytest.mark.parametrize(
    ("source", "name", "changes"),
    [
        ("ijepa", "ijepa", {"image_size": 48}),
        ("mae", "ijepa", {"in_channels": 1}),
        ("ijepa", "mae", {"class_token": True, "num_registers": 2, "layer_scale": 1e-5}),
        ("dino", "dino", {"class_token": True, "positions": Positions.learned, "image_size": 48}),
    ],
)
def test_the_plan_of_a_start_without_memory_is_the_start(
    tmp_path: Path, source: str, name: str, changes: dict[str, Any]
) -> None:
    folder, backbone = imported(tmp_path, source), replace(BACKBONE, **changes)
    target = METHODS.get(name).default_targets
    targets = TARGETS.config_of(target)() if target else None
    config = METHODS.config_of(name)(**SETTINGS[name])
    planned = plan_start(build_method(config, backbone, targets, seed=1, device="meta"), folder)
    assert planned.record == start_from(method_of(name, backbone), folder)


def test_relative_positions_are_refused_by_a_network_without(tmp_path: Path) -> None:
    folder = imported(tmp_path, "data2vec")
    method = method_of("mae", replace(BACKBONE, class_token=True))
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with pytest.raises(InitError, match=r"init_from=.*set backbone\.relative_position_bias=true \(here false\)"):
        start_from(method, folder)
    assert all(before[name].equal(tensor) for name, tensor in method.state_dict().items())
    relative = replace(BACKBONE, class_token=True, positions=Positions.none, relative_position_bias=True)
    assert start_from(method_of("mae", relative), folder)["loaded"] == {"encoder": "encoder"}


def test_a_decoder_with_other_heads_or_of_another_method_stays_fresh(tmp_path: Path) -> None:
    folder = imported(tmp_path, "mae")
    backbone = replace(BACKBONE, class_token=True)
    assert start_from(method_of("mae", backbone), folder)["fresh"] == []
    assert start_from(method_of("mae", backbone, decoder_heads=8), folder)["fresh"] == ["decoder"]
    assert start_from(method_of("mae", backbone, decoder_depth=2), folder)["fresh"] == ["decoder"]
    assert start_from(method_of("simmim", backbone), folder)["fresh"] == ["mask_token", "head"]


def test_a_teacher_head_that_is_missing_is_a_copy_of_the_head(tmp_path: Path) -> None:
    content = official_files.dino()
    content["teacher"] = {name: t for name, t in content["teacher"].items() if not name.startswith("head.")}
    torch.save(content, tmp_path / "dino.pth")
    write_import(import_weights(tmp_path / "dino.pth", Options(num_heads=4)), tmp_path / "dino")
    method = method_of("dino", replace(BACKBONE, class_token=True, positions=Positions.learned))
    record = start_from(method, tmp_path / "dino")
    assert record["fresh"] == []
    assert method.teacher_head.module.mlp[0].weight.equal(content["student"]["module.head.mlp.0.weight"])


def test_one_file_of_a_folder_starts_both_encoders(tmp_path: Path) -> None:
    folder = imported(tmp_path, "ijepa")
    record = start_from(method_of("ijepa"), folder / "encoder.safetensors")
    assert record["loaded"] == {"encoder": "encoder", "target_encoder": "encoder"}
    with pytest.raises(InitError, match="it is the predictor alone"):
        start_from(method_of("ijepa"), folder / "predictor.safetensors")


def test_an_altered_or_missing_source_is_refused(tmp_path: Path) -> None:
    folder = imported(tmp_path, "mae_encoder")
    with pytest.raises(InitError, match=r"backbone\.init_from=.*nowhere: there is no such file"):
        start_from(method_of("mae"), tmp_path / "nowhere")
    file = folder / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InitError, match="is not the file that"):
        start_from(method_of("mae"), folder)


def test_a_file_that_needs_options_names_the_tool_that_takes_them(tmp_path: Path) -> None:
    torch.save(official_files.mae_encoder(), tmp_path / "mae.pth")
    with pytest.raises(InitError, match=r"--num-heads N\n.*python tools/import_weights\.py .*mae\.pth"):
        start_from(method_of("mae"), tmp_path / "mae.pth")


def test_one_line_says_what_came_from_where(tmp_path: Path) -> None:
    record = start_from(method_of("ijepa"), imported(tmp_path, "mae"))
    line = described(record)
    assert line == (
        f"backbone.init_from: encoder, target_encoder (its encoder) from {tmp_path / 'mae'} (import of mae); predictor "
        "fresh; class token dropped"
    )
    json.dumps(record)
