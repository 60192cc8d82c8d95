"""Exports: what each format holds, refuses, and computes once another library has loaded it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_methods import TINY_METHOD, step_of
from torch import Tensor

from ssl_zoo.api import Transform
from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.trained import TrainedMethod
from ssl_zoo.interop import export as export_module
from ssl_zoo.interop import huggingface_folder, huggingface_reading, timm_folder
from ssl_zoo.interop.export import TOLERANCE, Format, export
from ssl_zoo.interop.manifest import Manifest, Preprocessing, backbone_values
from ssl_zoo.masks.base import Masks
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import NormPosition, Positions, ViTConfig
from ssl_zoo.targets import TARGETS

SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4}
CLASS = {"class_token": True}
BEIT = {**CLASS, "positions": Positions.none, "relative_position_bias": True, "key_bias": False, "layer_scale": 0.1}
OPTIONS = {
    "plain": {},
    "learned positions": {"positions": Positions.learned, **CLASS},
    "no positions": {"positions": Positions.none},
    "class token": CLASS,
    "registers": {"num_registers": 2},
    "class token and registers": {**CLASS, "num_registers": 2},
    "no key bias": {"key_bias": False, **CLASS},
    "no bias": {"qkv_bias": False},
    "layer scale": {"layer_scale": 0.1},
    "class token and layer scale": {**CLASS, "layer_scale": 0.1},
    "relative position bias": BEIT,
    "relative position bias without class token": {**BEIT, "class_token": False},
    "oblong": {"image_width": 32},
    "oblong with relative position bias": {**BEIT, "image_width": 32},
    "post-norm": {"norm_position": NormPosition.post},
    "other epsilon": {"norm_eps": 1e-5},
    "other MLP": {"mlp_ratio": 48 / 11},
    "one channel": {"in_channels": 1},
}
REFUSED = {
    Format.timm: {"relative position bias without class token", "post-norm", "other epsilon"},
    Format.huggingface: {
        *("registers", "layer scale", "relative position bias without class token"),
        *("oblong with relative position bias", "post-norm"),
    },
}
READERS = {
    Format.timm: "timm",
    Format.huggingface: "transformers",
    Format.onnx: "onnxruntime",
    Format.torch_export: "torch",
    Format.safetensors: "safetensors",
}


def perturbed(method: Method) -> Method:
    """Give zeros and ones of the initialisation other values, so that none of them hides a tensor that is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "pos_embed" not in name or parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method.eval()


def method_of(name: str, backbone: ViTConfig) -> Method:
    target = METHODS.get(name).default_targets
    settings = {"average_top_k_layers": 2} if target == "topk_teacher" else {}
    target_config = None if target is None else TARGETS.config_of(target)(**settings)
    config = METHODS.config_of(name)(**TINY_METHOD.get(name, {}))
    return perturbed(build_method(config, backbone, target_config, seed=0))


def manifest_of(name: str, backbone: ViTConfig, method: Method, **settings: object) -> Manifest:
    channels = backbone.in_channels
    transform = Preprocessing(list(backbone.image_shape), [0.5] * channels, [0.25] * channels, channels=channels)
    evaluated = "encoder" if method.eval_encoder() is method.encoder else "target_encoder"
    return Manifest("export", name, evaluated, backbone_values(backbone), transform, **settings)


def exported(name: str, backbone: ViTConfig, format: Format, out: Path, **settings: object) -> tuple[Method, Manifest]:
    pytest.importorskip(READERS[format])
    method = method_of(name, backbone)
    manifest = manifest_of(name, backbone, method, **settings)
    return method, export(TrainedMethod(method, Path("step_00000001"), 1), out, manifest, format=format)


def features(method: Method, images: Tensor) -> Tensor:
    with torch.no_grad():
        return method.eval_encoder()(images)


@pytest.mark.parametrize("format", [Format.timm, Format.huggingface], ids=lambda format: format.value)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_backbone_option_is_held_with_equal_features_or_refused(option: str, format: Format, tmp_path: Path):
    config = ViTConfig(**{**SIZES, **OPTIONS[option]})
    if option in REFUSED[format]:
        with pytest.raises(ValueError, match=r"can't hold this encoder:\n  backbone\.\w+="):
            exported("dino", config, format, tmp_path / "out")
        assert not list(tmp_path.iterdir())
    else:
        _, manifest = exported("dino", config, format, tmp_path / "out")
        assert manifest.details["verified"]["largest_difference"] <= TOLERANCE


def test_an_encoder_without_final_norm_is_held_by_timm_and_refused_for_transformers(tmp_path: Path):
    config = ViTConfig(**SIZES)
    method = method_of("ijepa", config)
    method.eval_encoder().norm = torch.nn.Identity()
    manifest, trained = manifest_of("ijepa", config, method), TrainedMethod(method, tmp_path, 1)
    export(trained, tmp_path / "timm", manifest, format=Format.timm)
    with pytest.raises(ValueError, match="an encoder without final norm"):
        export(trained, tmp_path / "transformers", manifest, format=Format.huggingface)


@pytest.mark.parametrize("name", ["ijepa", "mae", "data2vec", "dino", "ibot", "simmim"])
@pytest.mark.parametrize("format", [Format.timm, Format.huggingface], ids=lambda format: format.value)
def test_another_library_computes_the_features_of_each_method(name: str, format: Format, tmp_path: Path):
    options = BEIT if name in ("data2vec", "simmim") else {} if name == "ijepa" else CLASS
    config = ViTConfig(**{**SIZES, **options})
    method, manifest = exported(name, config, format, tmp_path / "out")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        if format is Format.timm:
            theirs = timm_folder.load(tmp_path / "out").forward_features(images)
        else:
            choice = huggingface_folder.choose(config, name, getattr(method, "decoder", None))
            model = huggingface_reading.load(tmp_path / "out", choice)
            is_mae = name == "mae"
            theirs = huggingface_reading.mae_tokens(model, images) if is_mae else model(images).last_hidden_state
    torch.testing.assert_close(theirs, features(method, images), rtol=0, atol=1e-5)
    expected = {"ijepa": "IJepaModel", "mae": "ViTMAEForPreTraining", "data2vec": "Data2VecVisionModel"}
    if format is Format.huggingface:
        architecture = {**expected, "simmim": "BeitModel"}.get(name, "ViTModel")
        assert architecture in manifest.details["load"]


@pytest.mark.parametrize("normalize", [True, False])
def test_transformers_computes_maes_loss_with_the_same_noise(normalize: bool, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = ViTConfig(**SIZES, **CLASS)
    settings = {"masks": {"mask_ratio": 0.75}, "targets": {"normalize": normalize}}
    method, _ = exported("mae", config, Format.huggingface, tmp_path / "out", config=settings)
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    order = noise.argsort(dim=1)
    masks = Masks(context=order[:, None, :4], targets=order[:, None, 4:])
    method.target.config.normalize = normalize
    batch = Batch({"image": images}, {"image": masks})
    with torch.no_grad():
        ours = method(batch, step_of(method)).losses["reconstruction"]
        theirs = model(images, noise=noise).loss
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_maes_decoder_without_a_class_token_is_left_out(tmp_path: Path):
    _, manifest = exported("mae", ViTConfig(**SIZES), Format.huggingface, tmp_path / "out")
    assert "IJepaModel" in manifest.details["load"]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["class token and registers", "post-norm"])
def test_onnx_holds_every_backbone_for_every_number_of_images(option: str, tmp_path: Path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    config = ViTConfig(**{**SIZES, **OPTIONS[option]})
    method, _ = exported("dino", config, Format.onnx, tmp_path / "out", pooling="class_token")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16)
        embedding, patches = session.run(["embedding", "patches"], {"images": images.numpy()})
        tokens = features(method, images)
        torch.testing.assert_close(torch.from_numpy(patches), method.encoder.patches(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(embedding), tokens[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_torch_program_computes_the_features_for_every_number_of_images(tmp_path: Path):
    config = ViTConfig(**{**SIZES, **BEIT})
    method, _ = exported("dino", config, Format.torch_export, tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16)
        embedding, patches = program(images)
        expected = method.encoder.patches(features(method, images))
        torch.testing.assert_close(patches, expected)
        torch.testing.assert_close(embedding, expected.mean(dim=1))


def test_an_export_with_other_features_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = timm_folder.model_tensors
    monkeypatch.setattr(timm_folder, "model_tensors", lambda encoder: {**tensors(encoder), "norm.bias": torch.ones(48)})
    with pytest.raises(ValueError, match=r"differ by .* more than 1e-05; nothing is written"):
        exported("ijepa", ViTConfig(**SIZES), Format.timm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path):
    method = method_of("ijepa", ViTConfig(**SIZES))
    with torch.no_grad():
        method.eval_encoder().norm.bias[0] = torch.nan
    manifest = manifest_of("ijepa", ViTConfig(**SIZES), method)
    with pytest.raises(ValueError, match="features are not finite: the encoder's weights have diverged"):
        export(TrainedMethod(method, tmp_path, 1), tmp_path / "out", manifest)
    assert not list(tmp_path.iterdir())


def test_an_export_that_nothing_here_can_read_says_that_it_is_not_verified(tmp_path: Path, monkeypatch):
    find_spec = export_module.importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    method = method_of("ijepa", ViTConfig(**SIZES))
    manifest = manifest_of("ijepa", ViTConfig(**SIZES), method)
    written = export(TrainedMethod(method, tmp_path, 1), tmp_path / "out", manifest, format=Format.huggingface)
    assert written.details["verified"] == {"by": None, "reason": "transformers is not installed"}
    assert "**not verified**: transformers is not installed" in (tmp_path / "out" / "README.md").read_text()


def test_the_manifest_has_the_call_that_creates_timms_model(tmp_path: Path):
    import timm
    from safetensors.torch import load_file

    method, manifest = exported("dino", ViTConfig(**SIZES, **CLASS, num_registers=2), Format.timm, tmp_path / "out")
    model = eval(manifest.details["create_model"], {"timm": timm})
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().forward_features(images), features(method, images), rtol=0, atol=1e-5)


def test_other_libraries_preprocess_as_evaluations_do(tmp_path: Path):
    exported("ijepa", ViTConfig(**SIZES), Format.huggingface, tmp_path / "photos")
    settings = json.loads((tmp_path / "photos" / "preprocessor_config.json").read_text())
    assert (settings["size"], settings["crop_size"]) == ({"shortest_edge": 18}, {"height": 16, "width": 16})
    assert (settings["image_mean"], settings["image_std"], settings["resample"]) == ([0.5] * 3, [0.25] * 3, 3)
    exported("ijepa", ViTConfig(**SIZES), Format.timm, tmp_path / "tiny", details={"training_image_size": [16, 16]})
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 1.0


def test_transformers_renders_an_image_as_the_encoders_transform(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    _, manifest = exported("ijepa", ViTConfig(**{**SIZES, "image_size": 28}), Format.huggingface, tmp_path / "out")
    image = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image[None], (64, 96), mode="bicubic")[0].clamp(0, 1).mul(255).byte()
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(image, return_tensors="pt")
    ours = Transform(manifest.transform)(image)
    difference = (theirs["pixel_values"][0] - ours).abs()
    assert difference.mean() < 0.02 and difference[:, 2:-2, 2:-2].max() < 0.1  # of a range of 4; crops end differently
