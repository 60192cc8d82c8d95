"""Encoders brought to other configurations: exact where the function allows it, refused with the key otherwise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from ssl_zoo.interop.fit import UnfitWeights, adapt_channels, fit_encoder
from ssl_zoo.nn import NormPosition, Positions, SincosLayout, ViT, ViTConfig

BASE = ViTConfig(image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
LEARNED = replace(BASE, positions=Positions.learned)


def network(config: ViTConfig, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    encoder = ViT(config).eval()
    for name, weight in encoder.named_parameters():
        if name != "pos_embed" or config.positions is Positions.learned:
            weight.data = torch.randn_like(weight) * 0.2
    return encoder


def fitted(source: ViT, config: ViTConfig) -> tuple[ViT, list[str]]:
    encoder = network(config, seed=1)
    state, notes = fit_encoder(source.state_dict(), source.config, config, encoder.state_dict())
    encoder.load_state_dict(state)
    return encoder, notes


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("source", "target", "note"),
    [
        (BASE, BASE, None),
        (BASE, LEARNED, "learned positions start with sin-cos values"),
        (replace(BASE, positions=Positions.none), LEARNED, "learned positions start with zeros"),
        (BASE, replace(BASE, layer_scale=1e-5), "LayerScale starts with ones"),
        (replace(BASE, layer_scale=1e-5), BASE, "LayerScale folded into the weights"),
        (BASE, replace(BASE, key_bias=False), "biases of keys dropped, which changes nothing"),
        (replace(BASE, key_bias=False), BASE, "biases of keys start with zeros"),
        (replace(BASE, qkv_bias=False), BASE, "biases of keys start with zeros"),
        (BASE, replace(BASE, relative_position_bias=True), "relative position biases start with zeros"),
        (replace(BASE, drop_path=0.1), replace(BASE, drop_path=0.2), None),
    ],
)
@torch.no_grad()
def test_conversions_of_the_same_function_keep_the_features(
    source: ViTConfig, target: ViTConfig, note: str | None
) -> None:
    original = network(source)
    encoder, notes = fitted(original, target)
    torch.testing.assert_close(encoder(images()), original(images()), rtol=1e-5, atol=1e-5)
    assert notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, r"set backbone\.depth=2 \(here 3\)"),
        ({"embed_dim": 96}, r"set backbone\.embed_dim=48 \(here 96\)"),
        ({"patch_size": 4}, r"set backbone\.patch_size=8 \(here 4\)"),
        ({"num_heads": 2}, r"set backbone\.num_heads=4 \(here 2\)"),
        ({"mlp_ratio": 2.0}, r"set backbone\.mlp_ratio=4\.0 \(here 2\.0\)"),
        ({"norm_position": NormPosition.post}, r"set backbone\.norm_position=pre \(here post\)"),
        ({"positions": Positions.none}, r"set backbone\.positions=sincos \(here none\)"),
        ({"sincos_layout": SincosLayout.row_first}, r"set backbone\.sincos_layout=col_first \(here row_first\)"),
        ({"qkv_bias": False}, r"set backbone\.qkv_bias=true \(here false\)"),
        ({"final_norm": False}, r"set backbone\.final_norm=true \(here false\)"),
    ],
)
def test_what_can_not_be_converted_is_refused_with_the_key_to_set(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnfitWeights, match=message):
        fitted(network(BASE), replace(BASE, **change))


def test_learned_and_relative_positions_are_not_lost() -> None:
    with pytest.raises(UnfitWeights, match=r"set backbone\.positions=learned \(here sincos\)"):
        fitted(network(LEARNED), BASE)
    relative = replace(BASE, positions=Positions.none, relative_position_bias=True)
    with pytest.raises(UnfitWeights, match=r"backbone\.relative_position_bias=true .*backbone\.positions=none"):
        fitted(network(relative), BASE)


@pytest.mark.parametrize("config", [BASE, replace(LEARNED, class_token=True)], ids=["sincos", "learned"])
@torch.no_grad()
def test_at_another_size_the_features_are_those_of_the_original_on_larger_images(config: ViTConfig) -> None:
    original = network(config)
    encoder, notes = fitted(original, replace(config, image_size=48))
    torch.testing.assert_close(encoder(images(48)), original(images(48)), rtol=1e-5, atol=1e-5)
    assert len(notes) == 1 and notes[0].endswith("for 48x48 px instead of 32x32")


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize("relative", [False, True])
def test_class_tokens_and_registers_are_dropped_or_fresh(positions: Positions, relative: bool) -> None:
    without = replace(BASE, positions=positions, relative_position_bias=relative)
    with_token = replace(without, class_token=True, num_registers=0 if relative else 2)
    dropped, notes = fitted(network(with_token), without)
    assert notes[0] == "class token dropped"
    encoder, notes = fitted(dropped, with_token)
    assert notes[0] == "class token fresh"
    assert encoder.blocks[1].mlp.fc2.weight.equal(dropped.blocks[1].mlp.fc2.weight)


@torch.no_grad()
def test_a_grey_image_has_the_features_that_it_has_in_colour() -> None:
    original = network(BASE)
    grey = images(channels=1)
    encoder, [note] = fitted(original, replace(BASE, in_channels=1))
    torch.testing.assert_close(encoder(grey), original(grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
    back, _ = fitted(encoder, BASE)
    torch.testing.assert_close(back(grey.expand(-1, 3, -1, -1)), encoder(grey), rtol=1e-5, atol=1e-5)
    assert "summed to 1" in note


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_channels_are_adapted_as_timm_does(channels: int) -> None:
    kernel = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(adapt_channels(kernel, channels), adapt_input_conv(channels, kernel))


def test_another_epsilon_is_reported() -> None:
    assert fitted(network(BASE), replace(BASE, norm_eps=1e-5))[1] == [
        "backbone.norm_eps=1e-05 here, 1e-06 in the weights"
    ]
