"""Networks of transformers and timm: imported, exported again, and read by their own library."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_zoo.api.exporting import export_import
from ssl_zoo.interop.export import Format
from ssl_zoo.interop.import_folder import write_import
from ssl_zoo.interop.importing import Options, import_weights
from ssl_zoo.plugins import discover

discover()
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
SIZES |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
BEIT = {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.1, "use_mean_pooling": False}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
DECODER |= {"decoder_intermediate_size": 128}
# Name -> class and config's class of the original, its sizes, class of the export.
NETWORKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "I-JEPA": ("IJepaModel", "IJepaConfig", {}, "IJepaModel"),
    "MSN": ("ViTMSNModel", "ViTMSNConfig", {}, "ViTModel"),
    "DINO": ("ViTModel", "ViTConfig", {}, "ViTModel"),
    "BEiT": ("BeitModel", "BeitConfig", BEIT, "BeitModel"),
    "data2vec": ("Data2VecVisionModel", "Data2VecVisionConfig", BEIT, "Data2VecVisionModel"),
}


def randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return model.eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def library() -> Any:
    return pytest.importorskip("transformers", reason="needs ssl-zoo[hf]")


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_transformers_reads_its_network_back_with_equal_features(name: str, tmp_path: Path) -> None:
    model_class, config_class, further, exported_class = NETWORKS[name]
    model = randomised(getattr(library(), model_class)(getattr(library(), config_class)(**SIZES, **further)))
    model.save_pretrained(tmp_path / "original")
    write_import(import_weights(tmp_path / "original"), tmp_path / "imported")
    exported = export_import(tmp_path / "imported", format=Format.huggingface)
    again = getattr(library(), exported_class).from_pretrained(exported.folder).eval()
    expected, found = model(images()).last_hidden_state, again(images()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mae_of_transformers_keeps_its_decoder_where_the_file_has_it(tmp_path: Path) -> None:
    model = randomised(library().ViTMAEForPreTraining(library().ViTMAEConfig(**SIZES, **DECODER, norm_pix_loss=True)))
    model.decoder.decoder_pos_embed.data[:, 0] = 0  # as in all published files; ours has no position for class tokens
    model.save_pretrained(tmp_path / "original")
    model.vit.save_pretrained(tmp_path / "encoder_alone")
    write_import(import_weights(tmp_path / "original"), tmp_path / "imported")
    write_import(import_weights(tmp_path / "encoder_alone"), tmp_path / "alone")
    exported = export_import(tmp_path / "imported", format=Format.huggingface)
    again = library().ViTMAEForPreTraining.from_pretrained(exported.folder).eval()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    again.config.norm_pix_loss = True
    expected, found = model(images(), noise=noise).loss, again(images(), noise=noise).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "ViTModel" in export_import(tmp_path / "alone", format=Format.huggingface).manifest.details["load"]


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True}], ids=str)
@torch.no_grad()
def test_timm_reads_its_network_back_with_equal_features(options: dict[str, Any], tmp_path: Path) -> None:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    model = randomised(VisionTransformer(**sizes, num_classes=7, **options))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    write_import(import_weights(tmp_path / "model.pth", Options(num_heads=4)), tmp_path / "imported")
    exported = export_import(tmp_path / "imported", format=Format.timm)
    load = exported.manifest.details["load"].replace("FOLDER", str(exported.folder))
    again = eval(load, {"timm": timm}).eval()  # the call of the manifest, as the model card prints it
    torch.testing.assert_close(again.forward_features(images()), model.forward_features(images()), rtol=1e-5, atol=1e-5)
    of_folder = import_weights(exported.folder)  # whose config.json has the number of heads
    imported = import_weights(tmp_path / "model.pth", Options(num_heads=4))
    assert of_folder.backbone == imported.backbone and of_folder.transform == imported.transform


def test_only_imported_folders_and_other_formats_are_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no folder of tools/import_weights\.py; export a run with --run"):
        export_import(tmp_path, format=Format.timm)
