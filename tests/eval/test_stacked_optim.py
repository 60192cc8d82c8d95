import pytest
import torch

from ssl_zoo.eval.stacked_optim import LARS_TRUST, StackedAdamW, StackedSGD

LRS, DECAYS = [0.1, 0.01], [0.0, 0.02]


def trained(make) -> list[torch.Tensor]:
    """Return weights and biases of two heads after five steps on a quadratic loss."""
    generator = torch.Generator().manual_seed(0)
    weights, bias = (torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 5, 3), (2, 3)))
    optimizer = make(weights, bias)
    for _ in range(5):
        optimizer.zero_grad()
        ((weights - 1).square().sum() + (bias - 2).square().sum()).backward()
        optimizer.step()
    return [weights.detach(), bias.detach()]


def separately(make) -> list[torch.Tensor]:
    """Return the same, where ``make`` makes torch's optimizer of one head, with its bias in a group of its own."""
    trained_heads = []
    for number, (lr, decay) in enumerate(zip(LRS, DECAYS, strict=True)):
        generator = torch.Generator().manual_seed(0)
        starts = [torch.randn(shape, generator=generator)[number] for shape in ((2, 5, 3), (2, 3))]
        weights, bias = map(torch.nn.Parameter, starts)
        optimizer = make(weights, bias, lr, decay)
        for _ in range(5):
            optimizer.zero_grad()
            ((weights - 1).square().sum() + (bias - 2).square().sum()).backward()
            optimizer.step()
        trained_heads.append([weights.detach(), bias.detach()])
    return [torch.stack(tensors) for tensors in zip(*trained_heads, strict=True)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_stacked_sgd_is_torchs_for_each_head_and_does_not_decay_biases(nesterov):
    settings = {"momentum": 0.9, "nesterov": nesterov}
    ours = trained(lambda *parameters: StackedSGD(parameters, LRS, DECAYS, **settings))
    theirs = separately(
        lambda weights, bias, lr, decay: torch.optim.SGD(
            [{"params": [weights], "weight_decay": decay}, {"params": [bias]}], lr=lr, **settings
        )
    )
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(ours, theirs, strict=True))


def test_stacked_adamw_is_torchs_for_each_head():
    ours = trained(lambda *parameters: StackedAdamW(parameters, LRS, DECAYS))
    theirs = separately(lambda w, b, lr, decay: torch.optim.AdamW([w, b], lr=lr, weight_decay=decay))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(ours, theirs, strict=True))


def test_lars_scales_the_update_of_each_heads_weights_by_its_own_norms():
    weights = torch.nn.Parameter(torch.stack([torch.ones(2, 2), 3 * torch.ones(2, 2)]))
    optimizer = StackedSGD([weights], [1.0, 1.0], [0.0, 0.0], lars=True)
    weights.grad = torch.full((2, 2, 2), 5.0)
    before = weights.detach().clone()
    optimizer.step()
    assert torch.allclose(before - weights, LARS_TRUST * before)
