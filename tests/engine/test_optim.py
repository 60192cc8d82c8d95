"""Optimizers, groups and clipping against their definitions."""

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_trainer
from torch import nn

from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.engine.muon import Muon, orthogonalize
from ssl_zoo.engine.optim import AdamWConfig, MuonConfig, Optimization, RateSchedules, check_groups
from ssl_zoo.method import Clip, ParamGroup

SCHEDULES = RateSchedules(AdamWConfig(warmup_epochs=0), num_steps=10, steps_per_epoch=5)


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = [p.detach() for p in parameters((48, 16), (16, 48), (16, 16), (48, 16))]
    for matrix, result in zip(matrices, orthogonalize(matrices), strict=True):
        assert result.shape == matrix.shape
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5 and values.max() < 1.3


def test_a_batch_of_matrices_is_orthogonalized_as_each_matrix_alone() -> None:
    matrices = [p.detach() for p in parameters((48, 16), (16, 48), (16, 16), (48, 16))]
    together = orthogonalize(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize([matrix])[0], result, atol=1e-5, rtol=1e-5)


def test_a_first_muon_step_is_the_scaled_orthogonal_gradient_and_decay() -> None:
    (matrix,) = parameters((12, 8))
    before, gradient = matrix.detach().clone(), matrix.grad.clone()
    optimizer = Muon([{"params": [matrix]}], momentum=0.95, lr=0.01, weight_decay=0.1)
    optimizer.step()
    direction = orthogonalize([gradient])[0]  # Newton-Schulz normalises, so the factor of the first momentum cancels
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * math.sqrt(12) * direction
    torch.testing.assert_close(matrix.detach(), expected, atol=1e-6, rtol=1e-5)


def test_muon_equals_adamw_except_on_matrices() -> None:
    ours, theirs = parameters((5,), (2, 3, 4)), parameters((5,), (2, 3, 4))
    Muon([{"params": ours}], momentum=0.95, lr=0.01, weight_decay=0.1).step()
    torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True).step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_muon_skips_the_update_when_found_inf_is_set() -> None:
    made = parameters((12, 8), (5,))
    before = [p.detach().clone() for p in made]
    made[0].grad[0, 0] = float("inf")
    optimizer = Muon([{"params": made}], momentum=0.95, lr=0.01)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(made, before, strict=True))


def test_muon_lowers_the_loss_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def trainer(run: Path) -> object:
        return tiny_trainer(run, num_steps=8, checkpoint_every=4, optim=MuonConfig(warmup_epochs=0))

    uninterrupted = trainer(tmp_path / "a")
    uninterrupted.train()
    resumed = trainer(tmp_path / "b")
    resumed.hooks[-1].resume(resumed, read_checkpoint(list_checkpoints(tmp_path / "a")[0]))
    assert resumed.step == 4
    resumed.train()
    expected = uninterrupted.method.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.method.state_dict().items())


def test_decay_applies_to_the_groups_that_ask_for_it_and_rates_scale() -> None:
    decayed, other = parameters((3, 3), (3,))
    groups = [ParamGroup("decay", [decayed], decay=True), ParamGroup("rest", [other], decay=False, lr_scale=0.5)]
    optimization = Optimization(AdamWConfig(warmup_epochs=0), groups, SCHEDULES)
    rates = optimization.set_rates(3)
    first, second = optimization.optimizer.param_groups
    assert (first["lr"], first["weight_decay"]) == (rates.lr, rates.weight_decay)
    assert (second["lr"], second["weight_decay"]) == (0.5 * rates.lr, 0.0)


@pytest.mark.parametrize("clip", list(Clip))
def test_clip_modes_differ_as_defined(clip: Clip) -> None:
    big, small = parameters((4, 4), (4,))
    big.grad.fill_(1.0)  # norm 4
    small.grad.fill_(0.25)  # norm 0.5
    group = ParamGroup("all", [big, small], decay=True, clip=clip)
    total = Optimization(AdamWConfig(clip_grad_norm=1.0), [group], SCHEDULES).clip()
    assert total.item() == pytest.approx(math.hypot(4, 0.5))
    norms = [p.grad.norm().item() for p in (big, small)]
    scale = 1 / math.hypot(4, 0.5)
    expected = {Clip.globally: [4 * scale, 0.5 * scale], Clip.per_parameter: [1.0, 0.5], Clip.none: [4.0, 0.5]}
    assert norms == pytest.approx(expected[clip], rel=1e-4)


def test_a_parameter_in_two_groups_or_in_none_is_named() -> None:
    module = nn.Linear(2, 2)
    both = [ParamGroup("a", [module.weight], True), ParamGroup("b", [module.weight, module.bias], False)]
    with pytest.raises(ValueError, match="weight is in groups 'a' and 'b'"):
        check_groups(both, module)
    with pytest.raises(ValueError, match="no group holds bias"):
        check_groups(both[:1], module)


def test_impossible_rates_name_their_key() -> None:
    with pytest.raises(ValueError, match=r"optim.lr=-1"):
        AdamWConfig(lr=-1)
    with pytest.raises(ValueError, match=r"optim.clip_grad_norm=0"):
        AdamWConfig(clip_grad_norm=0)
