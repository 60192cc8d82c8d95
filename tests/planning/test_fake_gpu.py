"""Steps on a fake GPU: dtypes, kernels and saved bytes, which a driver would not change."""

import pytest
import torch
from tiny_methods import tiny_batch, tiny_method

from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.settings import Precision
from ssl_zoo.method import METHODS
from ssl_zoo.nn.blocks import transformer_blocks
from ssl_zoo.planning.allocation_tracker import ACTIVATIONS, WEIGHT_COPIES, AllocationTracker
from ssl_zoo.planning.fake_gpu import WithoutDriver, fake_gpu
from ssl_zoo.planning.plan import plan_step


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("name", METHODS.names())
def test_every_trained_parameter_gets_a_gradient(name: str, precision: Precision) -> None:
    method = tiny_method(name)
    batch = tiny_batch(method, name)
    method.to("meta")
    with fake_gpu() as device:
        method.to_empty(device=device)
        batch = batch.map(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        with WithoutDriver(trained) as autograd:
            with autocast(precision, device):
                loss = method(batch, plan_step(method, device)).loss
            autograd.backward(loss)
        assert all(p.grad.device == device and p.grad.shape == p.shape for p in trained)
        assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


def test_a_block_in_bf16_saves_36_bytes_per_token_and_channel() -> None:
    dim, depth, num_heads, images, length = 128, 3, 4, 8, 32
    with torch.device("meta"):
        blocks = transformer_blocks(dim, depth, num_heads, mlp_ratio=4.0, norm_eps=1e-6)
    with fake_gpu() as device:
        blocks.to_empty(device=device)
        parameters = list(blocks.parameters())
        x = torch.empty(images, length, dim, device=device)
        with (
            AllocationTracker([*parameters, x]) as tracker,
            WithoutDriver(parameters),
            autocast(Precision.bf16, device),
        ):
            for block in blocks:
                x = block(x)
    # Inputs of four matmuls in bf16 (1 + 1 + 1 + 4 widths), queries, keys and values (3), the output of the MLP's first
    # layer (4), and in float32 the sums after both branches; per token four values of norms, one per attention head.
    per_token = dim * (2 * (7 + 3 + 4) + 4 * 2) + 4 * 4 + 4 * num_heads
    assert tracker.live[ACTIVATIONS] == pytest.approx(depth * images * length * per_token, rel=0.01)
    matrices = sum(p.numel() for p in parameters if p.ndim == 2)
    assert tracker.live[WEIGHT_COPIES] == pytest.approx(2 * matrices, rel=0.02)  # and the biases


def test_attention_takes_cudas_kernels_and_torch_is_restored_afterwards() -> None:
    kernel = torch.nn.functional.scaled_dot_product_attention
    q = torch.ones(1, 2, 4, 8)
    expected = kernel(q, q, q)
    kernels = []
    with fake_gpu() as device:
        for dtype, bias in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
            fake = torch.empty(1, 2, 8, 8, dtype=dtype, device=device, requires_grad=True)
            with WithoutDriver([]):
                mask = torch.empty(1, 2, 8, 8, dtype=dtype, device=device) if bias else None
                kernels.append(
                    torch.nn.functional.scaled_dot_product_attention(fake, fake, fake, attn_mask=mask).grad_fn.name()
                )
    flash, efficient = "ScaledDotProductFlashAttentionBackward0", "ScaledDotProductEfficientAttentionBackward0"
    assert kernels == [flash, efficient, efficient]
    assert torch.nn.functional.scaled_dot_product_attention is kernel
    assert torch.equal(kernel(q, q, q), expected)
