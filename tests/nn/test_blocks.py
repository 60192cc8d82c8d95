"""Blocks that compute only the last tokens."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo.nn import NarrowViT
from ssl_zoo.nn.blocks import LayerOutput, transformer_blocks


def block(**options: object) -> nn.Module:
    torch.manual_seed(0)
    (built,) = transformer_blocks(24, 1, 4, mlp_ratio=2.0, norm_eps=1e-6, **options)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built.eval()


def weight_gradients(built: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.sin().sum(), list(built.parameters())))


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"key_bias": False}, {"layer_scale": 0.1}], ids=str)
@pytest.mark.parametrize("last", [1, 4, 9])
def test_last_tokens_and_gradients_equal_those_of_the_full_output(last: int, options: dict) -> None:
    built, x = block(**options), torch.randn(2, 9, 24)
    full, last_only = built(x)[:, -last:], built(x, last=last)
    torch.testing.assert_close(last_only, full, rtol=0, atol=1e-5)
    for wanted, got in zip(weight_gradients(built, full), weight_gradients(built, last_only), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_rows_of_the_mask_are_those_of_the_last_tokens() -> None:
    built, x, mask = block(), torch.randn(2, 9, 24), torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(built(x, mask, last=3), built(x, mask)[:, -3:], rtol=0, atol=1e-5)
    assert not torch.allclose(built(x, mask, last=3), built(x, last=3), atol=1e-3)


@pytest.mark.parametrize("layer_output", LayerOutput)
def test_layer_outputs_have_only_the_last_tokens_too(layer_output: LayerOutput) -> None:
    built, x = block(), torch.randn(2, 9, 24)
    for full, last_only in zip(
        built(x, layer_output=layer_output), built(x, layer_output=layer_output, last=3), strict=True
    ):
        torch.testing.assert_close(last_only, full[:, -3:], rtol=0, atol=1e-5)


def test_last_block_of_a_predictor_does_not_compute_context_tokens() -> None:
    narrow = NarrowViT(dim_in=8, dim=32, dim_out=8, depth=1, num_heads=4, grid=(4, 4))
    context, targets = torch.arange(12).expand(2, -1), torch.tensor([[[12, 13]], [[14, 15]]])
    with FlopCounterMode(display=False) as cut:
        narrow(torch.randn(2, 12, 8), context, targets)
    with FlopCounterMode(display=False) as full:
        narrow.blocks[0](torch.randn(2, 14, 32))
    assert cut.get_total_flops() < 0.5 * full.get_total_flops()
