"""The manifest of a folder of weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssl_zoo.interop.manifest import Manifest, ManifestError, Preprocessing, backbone_values
from ssl_zoo.nn import NormPosition, Positions, ViTConfig

CONFIG = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4, positions=Positions.learned)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, tmp_path / "encoder.safetensors")
    transform = Preprocessing([16, 16], [0.5] * 3, [0.25] * 3)
    source = {"file": "x.pth", "licence": "CC BY-NC 4.0"}
    Manifest("import", "mae", "encoder", backbone_values(CONFIG), transform, source=source).write(tmp_path)
    return tmp_path


def edited(folder: Path, **changes: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_manifest_is_read_as_it_was_written(folder: Path):
    manifest = Manifest.read(folder)
    assert (manifest.kind, manifest.method, manifest.pooling, manifest.step) == ("import", "mae", "average", None)
    assert manifest.transform == Preprocessing([16, 16], [0.5] * 3, [0.25] * 3)
    assert manifest.files["encoder.safetensors"]["values"] == 10
    assert manifest.backbone_config() == CONFIG


def test_enums_of_a_backbone_survive(folder: Path):
    values = backbone_values(ViTConfig(norm_position=NormPosition.post, layer_scale=0.1))
    assert (values["name"], values["norm_position"]) == ("vit", "post")
    config = Manifest.read(edited(folder, backbone=values)).backbone_config()
    assert (config.norm_position, config.layer_scale) == (NormPosition.post, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"manifest\.json has format 2, this version reads 1"),
        ({"transform": {"size": [16, 16]}}, r"is no manifest of weights .*mean"),
        ({"transform": None}, "is no manifest of weights"),
    ],
)
def test_another_manifest_is_refused_with_the_reason(folder: Path, changes: dict, message: str):
    with pytest.raises(ManifestError, match=message):
        Manifest.read(edited(folder, **changes))


@pytest.mark.parametrize("backbone", [{"name": "vit", "depht": 2}, {"name": "resnet"}, {"name": "vit", "depth": 0}])
def test_a_backbone_that_is_not_known_is_refused(folder: Path, backbone: dict):
    with pytest.raises(ManifestError, match=r"the backbone of manifest\.json can't be built"):
        Manifest.read(edited(folder, backbone=backbone)).backbone_config()


def test_a_missing_and_an_altered_file_are_named(folder: Path):
    manifest = Manifest.read(folder)
    assert manifest.verified_file(folder, "encoder.safetensors").is_file()
    with pytest.raises(ManifestError, match=r"has no predictor\.safetensors; it has encoder\.safetensors"):
        manifest.verified_file(folder, "predictor.safetensors")
    (folder / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(ManifestError, match=r"is not the file that manifest\.json describes"):
        manifest.verified_file(folder, "encoder.safetensors")
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"is missing, but manifest\.json lists it"):
        manifest.verified_file(folder, "encoder.safetensors")
