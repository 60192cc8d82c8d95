"""Weights of a ViT at another size of images."""

from dataclasses import replace

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from ssl_zoo.nn import Positions, ViT, ViTConfig, resize_vit, source_grid
from ssl_zoo.nn.relative_position import relative_position_index
from ssl_zoo.nn.resize import resize_relative_bias

TINY = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4, class_token=True)
LARGER = {"image_size": 24, "image_width": 20}
TABLE = "rel_pos_bias.relative_position_bias_table"


def trained(**settings: object) -> ViT:
    torch.manual_seed(0)
    network = ViT(replace(TINY, **settings))
    if network.rel_pos_bias is not None:
        torch.nn.init.normal_(network.rel_pos_bias.relative_position_bias_table)
    return network.eval()


def resized(network: ViT, **settings: object) -> ViT:
    other = ViT(replace(network.config, **settings))
    other.load_state_dict(resize_vit(network.state_dict(), network.grid, other.config))
    return other.eval()


@pytest.mark.parametrize("size", [LARGER, {"image_size": 8}])
@pytest.mark.parametrize(
    "positions",
    [
        {"positions": Positions.sincos},
        {"positions": Positions.learned},
        {"positions": Positions.learned, "position_offset": 0.1},
        {"positions": Positions.none},
    ],
)
def test_features_equal_those_of_the_original_network_on_images_of_that_size(positions: dict, size: dict) -> None:
    network = trained(**positions)
    other = resized(network, **size)
    images = torch.randn(2, 3, *other.config.image_shape)
    torch.testing.assert_close(other(images), network(images), atol=1e-6, rtol=1e-6)


def test_resizing_to_the_same_grid_changes_nothing() -> None:
    state = trained(positions=Positions.learned, relative_position_bias=True).state_dict()
    same = resize_vit(state, (4, 4), TINY)
    assert same.keys() == state.keys() and all(same[name] is state[name] for name in state)


def test_an_antialiased_learned_table_equals_timms() -> None:
    network = trained(positions=Positions.learned)
    smaller = replace(network.config, image_size=8)
    found = resize_vit(network.state_dict(), (4, 4), smaller, antialias=True)["pos_embed"]
    expected = resample_abs_pos_embed(network.pos_embed, [2, 2], [4, 4], num_prefix_tokens=1, antialias=True)
    torch.testing.assert_close(found, expected)


def test_a_relative_bias_that_is_linear_in_the_offset_keeps_its_value_at_the_same_place_of_the_image() -> None:
    rows, columns = torch.meshgrid(torch.arange(-15.0, 16), torch.arange(-15.0, 16), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    found = resize_relative_bias(torch.cat([table, torch.ones(3, 2)]), (16, 16), (24, 32))
    assert torch.equal(found[-3:], torch.ones(3, 2))
    image = found[:-3].unflatten(0, (47, 63))
    assert image[23, 31].abs().max() < 1e-5  # the zero offset
    middle = torch.arange(-10.0, 11)
    torch.testing.assert_close(
        image[13:34, 31, 0], middle * 31 / 47, atol=0.05, rtol=0
    )  # torch's kernel is not exact for lines
    torch.testing.assert_close(
        image[23, 21:42, 1], middle * 31 / 63, atol=0.05, rtol=0
    )  # torch's kernel is not exact for lines


@pytest.mark.parametrize("class_token", [False, True])
def test_a_network_with_relative_bias_encodes_images_of_another_size(class_token: bool) -> None:
    network = trained(positions=Positions.none, relative_position_bias=True, class_token=class_token)
    other = resized(network, **LARGER)
    images = torch.randn(2, 3, 24, 20)
    assert other(images).isfinite().all()
    assert torch.equal(other.rel_pos_bias.relative_position_index, relative_position_index((6, 5), class_token))
    with pytest.raises(ValueError, match="needs images of the configured size"):
        network(images)


@pytest.mark.parametrize("positions", [{"positions": Positions.learned}, {"positions": Positions.none}])
def test_the_grid_of_weights_is_found_from_their_tables(positions: dict) -> None:
    state = trained(**positions, relative_position_bias=True).state_dict()
    for size in (LARGER, {"image_size": 8}, {}):
        assert source_grid(state, replace(TINY, **positions, relative_position_bias=True, **size)) == (4, 4)
    wide = trained(**positions, relative_position_bias=True, image_width=24)
    assert source_grid(wide.state_dict(), wide.config) == (4, 6)
    with pytest.raises(ValueError, match=r"nor a square one .* set backbone\.image_size"):
        source_grid(wide.state_dict(), replace(wide.config, image_width=None))


def test_weights_without_positions_depend_on_no_grid() -> None:
    assert source_grid(trained(positions=Positions.none).state_dict(), TINY) is None


@pytest.mark.parametrize("settings", [{"positions": Positions.learned}, {"relative_position_bias": True}])
def test_tables_of_another_grid_than_stated_are_refused(settings: dict) -> None:
    network = trained(**settings)
    with pytest.raises(ValueError, match="a grid of 5x5 patches"):
        resize_vit(network.state_dict(), (5, 5), replace(network.config, **LARGER))
