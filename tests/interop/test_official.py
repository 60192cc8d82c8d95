"""Official names: the mapping, and loading of all weights or none."""

import pytest
import torch

from ssl_zoo.interop.official import IJEPA_ENCODER, IJEPA_PREDICTOR, load_official, to_official
from ssl_zoo.nn import NarrowViT


def predictor() -> NarrowViT:
    return NarrowViT(dim_in=16, dim=8, dim_out=16, depth=1, num_heads=2, grid=(2, 2))


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("mask_token", "mask_token"),
        ("predictor_pos_embed", "pos_embed"),
        ("predictor_embed.weight", "embed_in.weight"),
        ("predictor_blocks.11.attn.qkv.bias", "blocks.11.attn.qkv.bias"),
        ("predictor_norm.weight", "norm.weight"),
        ("predictor_proj.bias", "proj_out.bias"),
    ],
)
def test_predictor_names_map_both_ways(official, ours):
    assert IJEPA_PREDICTOR.ours(official) == ours
    assert IJEPA_PREDICTOR.official(ours) == official


def test_the_prefix_of_ddp_is_removed():
    assert IJEPA_PREDICTOR.ours("module.predictor_norm.bias") == "norm.bias"
    assert IJEPA_ENCODER.ours("module.blocks.0.norm1.bias") == "blocks.0.norm1.bias"


def test_weights_survive_a_round_trip_through_official_names():
    source, copy = predictor(), predictor()
    load_official(copy, to_official(source, IJEPA_PREDICTOR), IJEPA_PREDICTOR)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictor_norm.bias": None}, "missing predictor_norm.bias"),
        ({"head.weight": torch.ones(1)}, "unknown head.weight"),
        ({"mask_token": torch.ones(1, 1, 4)}, r"mask_token has shape \[1, 1, 4\], needs \[1, 1, 8\]"),
    ],
)
def test_a_mismatch_is_reported_and_nothing_is_loaded(change, message):
    module, weights = predictor(), to_official(predictor(), IJEPA_PREDICTOR)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    given = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load_official(module, given, IJEPA_PREDICTOR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
