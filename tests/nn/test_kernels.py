"""Kernels compute what torch's layers compute: exactly in float32, and in bf16 no further from float32 than those."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.nn import kernels


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attend(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def error(result: Tensor, truth: Tensor) -> float:
    return ((result.float() - truth).norm() / truth.norm()).item()


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor, bf16: bool) -> list[Tensor]:
    """Return the function's value and its gradients with respect to all inputs."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        value = function(*inputs)
    weights = torch.linspace(-1, 1, value.numel()).view(value.shape)
    gradients = torch.autograd.grad((value.float() * weights).sum(), inputs)
    return [value.detach(), *gradients]


@pytest.mark.parametrize("shape", [(3, 5, 512), (40, 512)])
@pytest.mark.parametrize("features", [48, 256, 640])
def test_linear_in_bf16_errs_no_more_than_torch(features: int, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape), torch.randn(features, 512) / 20, torch.randn(features)
    truth = with_gradients(F.linear, *inputs, bf16=False)
    torchs, ours = with_gradients(F.linear, *inputs, bf16=True), with_gradients(kernels.linear, *inputs, bf16=True)
    for wanted, reference, result in zip(truth, torchs, ours, strict=True):
        assert result.dtype is reference.dtype and result.shape == reference.shape
        assert error(result, wanted) < 1.1 * error(reference, wanted)


@pytest.mark.parametrize("length", [1, 7, 16])
def test_attention_in_bf16_errs_no_more_than_torch(length: int) -> None:
    qkv = torch.randn(3, length, 3 * 24)
    truth = with_gradients(lambda x: attend(x, 4), qkv, bf16=False)
    torchs = with_gradients(lambda x: attend(x, 4), qkv.bfloat16(), bf16=True)
    ours = with_gradients(lambda x: kernels.attention(x, 4), qkv.bfloat16(), bf16=True)
    for wanted, reference, result in zip(truth, torchs, ours, strict=True):
        assert result.dtype is reference.dtype and result.shape == reference.shape
        assert error(result, wanted) < 1.1 * error(reference, wanted) + 1e-3


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("bf16", [False, True])
def test_attention_of_the_last_queries_is_the_end_of_full_attention(count: int, bf16: bool) -> None:
    qkv = torch.randn(3, 7, 3 * 24)
    qkv = qkv.bfloat16() if bf16 else qkv

    def full(x: Tensor) -> Tensor:
        return kernels.attention(x, 4)[:, -count:]

    def last(x: Tensor) -> Tensor:
        return kernels.cross_attention(x[:, -count:, :24], x[..., 24:], 4)

    tolerance = {"rtol": 0.02, "atol": 0.02} if bf16 else {"rtol": 0, "atol": 1e-6}
    for wanted, result in zip(*(with_gradients(f, qkv, bf16=bf16) for f in (full, last)), strict=True):
        torch.testing.assert_close(result, wanted, **tolerance)


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_of_projections_of_their_own_is_that_of_packed_ones(bf16: bool) -> None:
    qkv = torch.randn(3, 7, 3 * 24)
    qkv = qkv.bfloat16() if bf16 else qkv

    def separate(x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=-1)
        return kernels.separate_attention(q[:, :5], k, v, 4)

    tolerance = {"rtol": 0.02, "atol": 0.02} if bf16 else {"rtol": 0, "atol": 1e-6}
    full = with_gradients(lambda x: kernels.attention(x, 4)[:, :5], qkv, bf16=bf16)
    for wanted, result in zip(full, with_gradients(separate, qkv, bf16=bf16), strict=True):
        torch.testing.assert_close(result, wanted, **tolerance)


@torch.no_grad()
def test_mlp_without_gradient_in_bf16_errs_no_more_than_torch() -> None:
    first, second, x = nn.Linear(48, 96), nn.Linear(96, 48), torch.randn(4, 9, 48)
    plain = nn.Sequential(first, nn.GELU(), second)
    truth = plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert error(kernels.mlp(x, first, second), truth) < error(plain(x), truth)


@pytest.mark.parametrize("fused", [None, True, False])
def test_float32_is_exact(fused: bool | None) -> None:
    first, second, qkv = nn.Linear(48, 96), nn.Linear(96, 48), torch.randn(3, 7, 72)
    assert torch.equal(kernels.mlp(qkv[..., :48], first, second), second(F.gelu(first(qkv[..., :48]))))
    tolerance = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(kernels.attention(qkv, 4, fused=fused), attend(qkv, 4), **tolerance)


def test_biased_logits_and_their_gradient_equal_those_of_plain_matmuls() -> None:
    qkv, bias = torch.randn(3, 7, 72), torch.randn(1, 4, 7, 7)
    expected = with_gradients(lambda x, b: kernels.attention(x, 4, b, fused=False), qkv, bias, bf16=False)
    result = with_gradients(lambda x, b: kernels.attention(x, 4, b), qkv, bias, bf16=True)
    for wanted, got in zip(expected, result, strict=True):
        assert error(got, wanted) < 0.02


def test_dropout_drops_attention_weights_in_every_kernel() -> None:
    qkv = torch.ones(2, 64, 72)
    for options in ({"fused": True}, {"fused": False}, {}):
        dropped = kernels.attention(qkv, 4, dropout=0.5, **options)
        assert 0.02 < dropped.std() < 0.3  # a mean of 64 values that are 0 or 2 each
        assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def kernels_of(function: Callable[[], Tensor]) -> set[str]:
    with torch.profiler.profile() as profile:
        function()
    return {event.key for event in profile.key_averages()}


def test_bf16_on_a_cpu_fuses_attention_only_without_gradients() -> None:
    qkv = torch.randn(2, 16, 72)
    fused = "aten::scaled_dot_product_attention"

    def run(requires_grad: bool, bf16: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return kernels.attention(qkv.clone().requires_grad_(requires_grad), 4)

    assert fused in kernels_of(lambda: run(requires_grad=False, bf16=True))
    assert fused not in kernels_of(lambda: run(requires_grad=True, bf16=True))
    assert fused in kernels_of(lambda: run(requires_grad=True, bf16=False))
