"""Golden schedule values of the reference recipes."""

import importlib.resources
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_zoo.config import load_config
from ssl_zoo.engine.optim import AdamWConfig, RateSchedules
from ssl_zoo.schedules import ScheduleShape, make_schedule, with_warmup

# I-JEPA ViT-H/14: 300 epochs of 625 steps, warm-up 40 epochs (facebookresearch/ijepa, in1k_vith14_ep300).
NUM_STEPS, STEPS_PER_EPOCH = 187_500, 625
ROOT = Path(str(importlib.resources.files("ssl_zoo.configs")))


@pytest.fixture(scope="module")
def huge() -> RateSchedules:
    optim = load_config(ROOT / "ijepa" / "vith14.yaml").optim
    return RateSchedules(optim, num_steps=NUM_STEPS, steps_per_epoch=STEPS_PER_EPOCH)


@pytest.mark.parametrize(
    ("reference_step", "lr"),
    [
        (1, 2.00032e-4),
        (12_500, 6.0e-4),
        (24_999, 9.99968e-4),
        (25_000, 1.0e-3),
        (100_000, 5.607080717875e-4),
        (187_500, 1.0e-6),
    ],
)
def test_learning_rate_equals_the_reference(huge: RateSchedules, reference_step: int, lr: float) -> None:
    # The reference advances its schedules first: its step 1 is ours 0.
    assert huge(reference_step - 1).lr == pytest.approx(lr, abs=1e-12, rel=1e-9)


@pytest.mark.parametrize(
    ("reference_step", "weight_decay"),
    [(1, 0.0400000000253), (12_500, 0.0439334319), (25_000, 0.0555618176), (100_000, 0.2388151234), (187_500, 0.4)],
)
def test_weight_decay_equals_the_reference(huge: RateSchedules, reference_step: int, weight_decay: float) -> None:
    assert huge(reference_step - 1).weight_decay == pytest.approx(weight_decay, abs=1e-10)


def test_the_default_rates_are_constant() -> None:
    schedules = RateSchedules(AdamWConfig(), num_steps=10, steps_per_epoch=5)
    assert {(schedules(step).lr, schedules(step).weight_decay) for step in range(10)} == {(1e-3, 0.05)}


def test_ema_momentum_rises_linearly_from_its_first_value() -> None:
    momentum = make_schedule(ScheduleShape.linear, 0.996, 1.0)
    assert [momentum(step / NUM_STEPS) for step in (0, 93_750)] == pytest.approx([0.996, 0.998], abs=1e-12)


def test_a_constant_schedule_stays_at_its_start() -> None:
    assert [make_schedule(ScheduleShape.constant, 0.05, 0.4)(fraction) for fraction in (0.0, 0.9, 1.0)] == [0.05] * 3


def test_milestones_divide_the_rate_exactly_there() -> None:
    # SimMIM's ViT-B/16 (microsoft/SimMIM): 800 epochs of 625 steps, 10 of warm-up, a tenth of the rate from 700 on.
    config = AdamWConfig(warmup_lr=2e-4, warmup_epochs=10, milestones=[700])
    schedules = RateSchedules(config, num_steps=800 * 625, steps_per_epoch=625)
    steps = (0, 3125, 6250, 700 * 625 - 1, 700 * 625, 800 * 625 - 1)
    rates = [schedules(step).lr for step in steps]
    assert rates == pytest.approx([2e-4, 6e-4, 1e-3, 1e-3, 1e-4, 1e-4], rel=1e-9)


def test_milestones_beyond_a_shorter_run_are_not_reached() -> None:
    config = AdamWConfig(
        warmup_lr=2e-4, warmup_epochs=1, milestones=[2, 3, 9], milestone_factor=0.5, schedule_offset=-1
    )
    schedules = RateSchedules(config, num_steps=8, steps_per_epoch=2)
    rates = [schedules(step).lr for step in range(8)]
    assert rates == pytest.approx([2e-4, 2e-4, 6e-4, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4], rel=1e-9)


@pytest.mark.parametrize("milestones", [[3.0, 2.0], [2.0, 2.0], [1.0, 3.0]])
def test_milestones_must_rise_after_the_warm_up(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match=r"optim\.milestones=.* after optim\.warmup_epochs=1"):
        AdamWConfig(warmup_epochs=1, milestones=milestones)


def test_a_run_ends_partway_through_stretched_schedules() -> None:
    config = AdamWConfig(
        lr=1.0, min_lr=0.0, warmup_epochs=1, weight_decay=0.0, final_weight_decay=1.0, schedule_stretch=2
    )
    run, longer = (
        RateSchedules(replace(config, schedule_stretch=stretch), num_steps=steps, steps_per_epoch=2)
        for stretch, steps in ((2.0, 10), (1.0, 20))
    )
    assert [run(step) for step in range(10)] == [longer(step) for step in range(10)]


def test_the_warm_up_ends_exactly_at_the_peak() -> None:
    schedule = with_warmup(0.0, 0.25, make_schedule(ScheduleShape.cosine, 1.0, 0.0))
    assert [schedule(f) for f in (0.0, 0.125, 0.25, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.0], abs=1e-12)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    schedule = with_warmup(0.0, 2.0, make_schedule(ScheduleShape.cosine, 1.0, 0.0))
    assert schedule(0.5) == pytest.approx(0.5) and schedule(1.0) == pytest.approx(1.0)
