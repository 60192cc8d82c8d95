"""Attention weights of blocks, restated token by token, and as the weights with which the blocks attend."""

from dataclasses import replace

import pytest
import torch
from tiny_methods import TINY_BACKBONE

from ssl_zoo.nn import NormPosition, Positions, ViT, ViTConfig
from ssl_zoo.nn.attention_weights import attention_weights
from ssl_zoo.seeding import generator_for

BACKBONES = {
    "plain": TINY_BACKBONE,
    "class token and registers": replace(TINY_BACKBONE, class_token=True, num_registers=3),
    "relative positions": replace(
        TINY_BACKBONE, positions=Positions.none, relative_position_bias=True, class_token=True, key_bias=False
    ),
    "post-norm": replace(TINY_BACKBONE, norm_position=NormPosition.post, layer_scale=0.1),
}


def built(config: ViTConfig) -> ViT:
    """Build an encoder whose weights, biases and relative positions are all random and large enough to matter."""
    encoder = ViT(config).eval()
    with torch.no_grad():
        for number, parameter in enumerate(encoder.parameters()):
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=generator_for("weights", number))
    return encoder


def images(num_images: int = 2) -> torch.Tensor:
    return torch.randn(num_images, 3, 16, 16, generator=generator_for("images"))


@pytest.mark.parametrize("name", BACKBONES)
def test_they_are_the_softmax_of_scaled_products_of_queries_and_keys(name: str) -> None:
    encoder, depth = built(BACKBONES[name]), TINY_BACKBONE.depth
    inputs: list[torch.Tensor] = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        encoder(images())
        found = attention_weights(encoder, images(), range(depth))
        bias = 0 if encoder.rel_pos_bias is None else encoder.rel_pos_bias()[0]
        for block, x, weights in zip(encoder.blocks, inputs, found, strict=False):
            seen = x if BACKBONES[name].norm_position is NormPosition.post else block.norm1(x)
            q, k, _ = block.attn.qkv(seen).chunk(3, dim=-1)
            for head in range(4):
                own = slice(12 * head, 12 * (head + 1))
                logits = q[..., own] @ k[..., own].transpose(1, 2) / 12**0.5
                expected = (logits + (bias if isinstance(bias, int) else bias[head])).softmax(dim=-1)
                torch.testing.assert_close(weights[:, head], expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_values_that_they_weigh_are_what_the_block_attends_to(name: str) -> None:
    encoder = built(BACKBONES[name])
    block, outputs = encoder.blocks[1], []
    inputs: list[tuple] = []
    block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    [weights] = attention_weights(encoder, images(), [1])
    x, bias = inputs[0]
    with torch.no_grad():
        values = block.attn.qkv(block._normed(x)).chunk(3, dim=-1)[2].unflatten(-1, (4, 12)).transpose(1, 2)
        attended = (weights @ values).transpose(1, 2).flatten(2)
        outputs = block.ls1(block.attn.proj(attended))
        torch.testing.assert_close(outputs, block.attention_branch(block._normed(x), bias))


def test_layers_come_in_the_order_of_the_request_and_negative_ones_count_from_the_last() -> None:
    encoder = built(TINY_BACKBONE)
    last, first, again = attention_weights(encoder, images(), [-1, 0, 1])
    assert torch.equal(last, again) and not torch.equal(first, last)


def test_a_layer_out_of_range_is_refused_and_no_hook_stays() -> None:
    encoder = built(TINY_BACKBONE)
    with pytest.raises(ValueError, match=r"layers=\[0, 2\] must be at least one index in -2..1"):
        attention_weights(encoder, images(), [0, 2])
    assert not any(block._forward_pre_hooks for block in encoder.blocks)
