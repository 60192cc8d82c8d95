"""Networks of transformers and timm, imported: their features are ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_zoo.interop.importing import ImportedWeights, Options, import_weights
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Progress, Step, build_method
from ssl_zoo.methods.mae import MAEConfig
from ssl_zoo.nn import ViT
from ssl_zoo.plugins import discover
from ssl_zoo.targets import PixelsConfig

discover()
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
SIZES |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
BEIT = {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.1}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
DECODER |= {"decoder_intermediate_size": 128}
# Name -> class, its config's class, further sizes, method.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "I-JEPA": ("IJepaModel", "IJepaConfig", {}, "ijepa"),
    "MSN": ("ViTMSNModel", "ViTMSNConfig", {}, "msn"),
    "DINO": ("ViTModel", "ViTConfig", {}, "vit"),
    "ViT without biases": ("ViTModel", "ViTConfig", {"qkv_bias": False}, "vit"),
    "not square": ("ViTModel", "ViTConfig", {"image_size": (16, 32)}, "vit"),
    "BEiT": ("BeitModel", "BeitConfig", {**BEIT, "use_mean_pooling": False}, "beit"),
    "BEiT, mean pooling": ("BeitModel", "BeitConfig", BEIT, "beit"),
    "BEiT, positions": (
        "BeitModel",
        "BeitConfig",
        {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
        "beit",
    ),
    "data2vec": ("Data2VecVisionModel", "Data2VecVisionConfig", {**BEIT, "use_mean_pooling": False}, "data2vec"),
    "data2vec, mean pooling": ("Data2VecVisionModel", "Data2VecVisionConfig", BEIT, "data2vec"),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {"mlp_ratio": 4, "num_register_tokens": 3},
        "dinov2",
    ),
}


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs ssl-zoo[hf]")


def randomised(model: Any) -> Any:
    """Redraw every weight: initial ones are often zeros or ones, which would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return model.eval()


def encoder_of(imported: ImportedWeights) -> ViT:
    encoder = ViT(imported.backbone).eval()
    encoder.load_state_dict(imported.networks[imported.evaluated])
    return encoder


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_folder_of_transformers_has_the_features_of_its_model(tmp_path: Path, name: str) -> None:
    library = transformers()
    model_class, config_class, further, method = NETWORKS[name]
    model = randomised(getattr(library, model_class)(getattr(library, config_class)(**{**SIZES, **further})))
    model.save_pretrained(tmp_path)
    imported = import_weights(tmp_path)
    encoder, batch = encoder_of(imported), images(imported.backbone.image_shape)
    assert imported.method == method
    torch.testing.assert_close(encoder(batch), model(batch).last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_names_that_transformers_has_in_memory_are_read_too(tmp_path: Path) -> None:
    library = transformers()
    model = randomised(library.ViTModel(library.ViTConfig(**SIZES)))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    features = encoder_of(import_weights(tmp_path))(images())
    torch.testing.assert_close(features, model(images()).last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mae_of_transformers_has_our_loss_for_the_same_noise(tmp_path: Path) -> None:
    library = transformers()
    config = library.ViTMAEConfig(**SIZES, **DECODER, norm_pix_loss=True)
    model = randomised(library.ViTMAEForPreTraining(config))
    model.decoder.decoder_pos_embed.data[:, 0] = 0  # as in all published files; ours has no position for class tokens
    model.save_pretrained(tmp_path)
    imported = import_weights(tmp_path)
    method = build_method(
        MAEConfig(**imported.method_settings), imported.backbone, PixelsConfig(normalize=True), seed=0
    )
    method.encoder.load_state_dict(imported.networks["encoder"])
    method.load_state_dict(imported.networks["predictor"], strict=False)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    order = noise.argsort(dim=1)
    masks = Masks(order[:, None, :4], order[:, None, 4:])
    loss = method(Batch({"image": images()}, {"image": masks}), Step(Progress(step=0, num_steps=1, samples=0))).loss
    torch.testing.assert_close(loss, model(images(), noise=noise).loss, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_masked_image_modeling_of_transformers_predicts_our_pixels(tmp_path: Path) -> None:
    library = transformers()
    model = randomised(library.ViTForMaskedImageModeling(library.ViTConfig(**SIZES, encoder_stride=8)))
    model.save_pretrained(tmp_path)
    imported = import_weights(tmp_path)
    beside, encoder = imported.networks["predictor"], encoder_of(imported)
    masked = torch.arange(16).expand(2, -1) % 2 == 0
    tokens = encoder.patches(encoder(images(), masked=masked, mask_token=beside["mask_token"]))
    patches = torch.nn.functional.linear(tokens, beside["head.weight"], beside["head.bias"])
    theirs = model(images(), bool_masked_pos=masked).reconstruction
    ours = patches.unflatten(1, (4, 4)).unflatten(3, (8, 8, 3)).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 32, 32)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_network_that_vit_can_not_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="type 'swin'; networks are read of the types ijepa"):
        import_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_act": "relu", "num_attention_heads": 3}')
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        import_weights(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
        {"qkv_bias": False},
        {"global_pool": "avg"},  # fc_norm instead of norm
    ],
    ids=str,
)
@torch.no_grad()
def test_a_file_of_timm_has_the_features_of_its_model(tmp_path: Path, options: dict[str, Any]) -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=7, **options)
    randomised(model)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder = encoder_of(import_weights(tmp_path / "model.pth", Options(num_heads=4)))
    torch.testing.assert_close(encoder(images()), model.forward_features(images()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_file_of_timms_beit_has_the_features_of_its_model(tmp_path: Path) -> None:
    from timm.models.beit import Beit

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "global_pool": "token"}
    model = randomised(Beit(**sizes, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.1))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder = encoder_of(import_weights(tmp_path / "model.pth"))
    torch.testing.assert_close(encoder(images()), model.forward_features(images()), rtol=1e-5, atol=1e-5)
