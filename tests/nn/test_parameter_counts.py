"""Sizes of all backbones, read from configs/backbone, against the published models' counts (built on meta)."""

import pytest
import torch
from torch import nn

from ssl_zoo.config import compose_section
from ssl_zoo.nn import NarrowViT, ViT, ViTConfig


def config_of(name: str, *overrides: str) -> ViTConfig:
    return compose_section("backbone", [f"backbone={name}", *(f"backbone.{override}" for override in overrides)])


def counts(module: nn.Module) -> tuple[int, int]:
    return (
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
    )


@pytest.mark.parametrize(
    ("name", "overrides", "total", "trainable"),
    [
        ("vit_tiny", [], 5_524_032, 5_486_400),
        ("vit_small", [], 21_664_896, 21_589_632),
        ("vit_base", [], 85_797_120, 85_646_592),
        ("vit_large", [], 303_299_584, 303_098_880),
        ("vit_huge", [], 630_762_240, 630_434_560),
        ("vit_huge", ["patch_size=16", "image_size=448"], 631_668_480, 630_664_960),
        ("vit_giant", [], 1_011_368_576, 1_011_092_608),
    ],
)
def test_backbone_counts_are_ijepas(name: str, overrides: list[str], total: int, trainable: int) -> None:
    with torch.device("meta"):
        assert counts(ViT(config_of(name, *overrides))) == (total, trainable)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("vit_tiny", 5_524_416),
        ("vit_small", 21_665_664),
        ("vit_base", 85_798_656),
        ("vit_large", 303_301_632),
        ("vit_huge", 630_764_800),
    ],
)
def test_counts_with_class_token_are_maes(name: str, total: int) -> None:
    with torch.device("meta"):
        assert counts(ViT(config_of(name, "class_token=true")))[0] == total


@pytest.mark.parametrize(
    ("name", "overrides", "depth", "total"),
    [
        ("vit_base", [], 6, 11_314_176),
        ("vit_large", [], 12, 22_157_824),
        ("vit_huge", [], 12, 22_377_728),
        ("vit_huge", ["patch_size=16", "image_size=448"], 12, 22_580_480),
        ("vit_giant", [], 16, 29_550_976),
    ],
)
def test_predictor_counts_are_ijepas(name: str, overrides: list[str], depth: int, total: int) -> None:
    config = config_of(name, *overrides)
    with torch.device("meta"):
        predictor = NarrowViT(
            dim_in=config.embed_dim,
            dim=384,
            dim_out=config.embed_dim,
            depth=depth,
            num_heads=config.num_heads,
            grid=config.grid,
        )
    assert counts(predictor)[0] == total


@pytest.mark.parametrize(
    ("name", "total"), [("vit_base", 26_109_184), ("vit_large", 26_240_256), ("vit_huge", 26_309_708)]
)
def test_decoder_counts_are_maes(name: str, total: int) -> None:
    config = config_of(name)
    with torch.device("meta"):
        decoder = NarrowViT(
            dim_in=config.embed_dim,
            dim=512,
            dim_out=3 * config.patch_size**2,
            depth=8,
            num_heads=16,
            grid=config.grid,
            num_prefix_tokens=1,
        )
    assert counts(decoder)[0] == total


def test_giant_has_exactly_6144_hidden_units() -> None:
    with torch.device("meta"):
        assert ViT(config_of("vit_giant")).blocks[39].mlp.fc1.out_features == 6144
