"""Batch normalization over ranks, and the projection head that uses it."""

import pytest
import torch
from tiny_world import on_ranks
from torch import nn

from ssl_zoo.nn.batch_norm import BatchNorm
from ssl_zoo.nn.heads import ProjectionHead
from ssl_zoo.world import World


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_is_torchs_in_value_and_gradient(affine: bool) -> None:
    ours, theirs = BatchNorm(5, affine=affine), nn.BatchNorm1d(5, affine=affine)
    for norm in (ours, theirs):
        if affine:
            norm.load_state_dict({"weight": torch.arange(1.0, 6.0), "bias": torch.arange(5.0)}, strict=False)
    x = 30 + 3 * torch.randn(12, 5)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0], World()), theirs(inputs[1])]
    for output in outputs:
        output.pow(3).sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=2e-3)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


def test_batch_normalization_has_no_state_besides_its_parameters() -> None:
    norm = BatchNorm(5)
    training, evaluation = (norm.train(mode)(torch.ones(3, 5).cumsum(0), World()) for mode in (True, False))
    assert torch.equal(training, evaluation)
    assert norm.state_dict().keys() == {"weight", "bias"}


def test_statistics_of_bf16_features_are_float32() -> None:
    x = (100 + torch.randn(4096, 2)).bfloat16()
    output = BatchNorm(2)(x, World())
    assert output.dtype is torch.float32
    torch.testing.assert_close(output.mean(0), torch.zeros(2), atol=1e-4, rtol=0)


def test_a_head_on_ranks_has_the_values_and_gradients_of_one_process() -> None:
    head = ProjectionHead([6, 8, 8, 4], activation=nn.ReLU, batch_norm_output=True, bias=False)
    x = torch.randn(12, 6)
    alone = head(x, World())
    alone.pow(3).mean().backward()
    expected = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    parts = on_ranks(3, lambda world: head(x.chunk(3)[world.rank], world))
    torch.testing.assert_close(torch.cat(parts), alone)
    torch.stack([part.pow(3).mean() for part in parts]).mean().backward()
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_msns_reference_code_and_the_widths_that_are_given() -> None:
    head = ProjectionHead([6, 8, 8, 4], activation=nn.GELU, std=0.02)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if p.ndim == 2}
    assert shapes == {"fc1.weight": (8, 6), "fc2.weight": (8, 8), "fc3.weight": (4, 8)}
    assert {"bn1.weight", "bn2.bias", "fc3.bias"} <= head.state_dict().keys()
    assert not any(name.startswith("bn3") for name in head.state_dict())
    assert not any(
        "bn" in name for name in ProjectionHead([6, 8, 4], activation=nn.GELU, batch_norm=False).state_dict()
    )
