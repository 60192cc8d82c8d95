"""EMA weights: their momentum over a run, their update, and that nothing trains them."""

import pytest
import torch
from torch import nn

from ssl_zoo.ema import Ema, EmaConfig, EmaCopy
from ssl_zoo.schedules import ScheduleShape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (ScheduleShape.constant, [0.9, 0.9, 0.9, 0.9]),
        (ScheduleShape.linear, [0.9, 0.95, 1.0, 1.0]),
        (ScheduleShape.cosine, [0.9, 0.95, 1.0, 1.0]),
    ],
)
def test_the_momentum_ends_its_schedule_at_the_annealed_fraction(shape: ScheduleShape, expected: list[float]) -> None:
    config = EmaConfig(0.9, 1.0, shape, anneal_fraction=0.5)
    assert [config.momentum_at(fraction) for fraction in (0.0, 0.25, 0.5, 0.9)] == pytest.approx(expected)


def test_a_copy_is_called_without_gradient_and_in_eval_mode_also_where_its_owner_trains() -> None:
    online = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    owner = nn.ModuleList([EmaCopy(online)]).train()
    output = owner[0](torch.randn(4, 3, requires_grad=True))
    assert not output.requires_grad and not any(module.training for module in owner[0].modules())
    assert not any(parameter.requires_grad for parameter in owner.parameters()) and online.training


def test_floating_buffers_are_averaged_and_integer_ones_copied() -> None:
    online = nn.BatchNorm1d(2)
    copy = EmaCopy(online)
    online(torch.randn(8, 2) + 3)
    before = copy.module.running_mean.clone()
    Ema(online, copy, lambda fraction: 0.75).update(0.0)
    torch.testing.assert_close(copy.module.running_mean, 0.75 * before + 0.25 * online.running_mean)
    assert copy.module.num_batches_tracked == online.num_batches_tracked == 1


def test_a_tensor_with_two_names_is_averaged_once() -> None:
    online = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    online[1].weight = online[0].weight
    copy = EmaCopy(online)
    with torch.no_grad():
        online[0].weight.add_(1.0)
    before = copy.module[0].weight.clone()
    Ema(online, copy, lambda fraction: 0.5).update(0.0)
    torch.testing.assert_close(copy.module[0].weight, before + 0.5)


@pytest.mark.parametrize("settings", [{"momentum": 1.5}, {"final_momentum": -0.1}, {"anneal_fraction": 0.0}])
def test_values_out_of_range_name_their_keys(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"ema\.{next(iter(settings))}="):
        EmaConfig(**settings)
