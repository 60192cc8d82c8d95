"""Schedules over fvcore's ParamScheduler: pure functions from the fraction of a run to a value."""

from collections.abc import Sequence
from enum import Enum

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)


class Shape(Enum):
    """Course between a start and an end value."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


def ramp(shape: Shape, start: float, end: float) -> ParamScheduler:
    """From ``start`` at fraction 0 to ``end`` at fraction 1; a constant stays at ``start``."""
    if shape is Shape.constant:
        return LinearParamScheduler(start, start)  # fvcore's constant scheduler refuses the end of the run
    return (LinearParamScheduler if shape is Shape.linear else CosineParamScheduler)(start, end)


def stepped(start: float, factor: float, milestones: Sequence[int], num_steps: int) -> ParamScheduler:
    """``start``, multiplied by ``factor`` from each milestone on; those after ``num_steps`` steps are not reached."""
    reached = [milestone for milestone in milestones if milestone < num_steps]
    if not reached:
        return ramp(Shape.constant, start, start)
    values = [start * factor**count for count in range(len(reached) + 1)]
    return MultiStepParamScheduler(values, num_updates=num_steps, milestones=reached)


def warmed_up(start: float, warmup_fraction: float, main: ParamScheduler) -> ParamScheduler:
    """``main`` over the run after a linear rise from ``start`` to its first value.

    Args:
        warmup_fraction: share of the run that the rise takes; at its end exactly ``main(0)`` is reached.
    """
    if warmup_fraction <= 0:
        return main
    if warmup_fraction >= 1:
        return LinearParamScheduler(start, main(0.0))
    rise = LinearParamScheduler(start, main(0.0))
    return CompositeParamScheduler([rise, main], [warmup_fraction, 1 - warmup_fraction], ["rescaled", "rescaled"])


def after_warmup(start: float, end: float, epoch: float, warmup_epochs: float) -> float:
    """Change linearly from ``start`` at epoch 0 to ``end`` after ``warmup_epochs``, and keep it; constant before 0."""
    done = min(1.0, max(0.0, epoch) / warmup_epochs) if warmup_epochs else 1.0
    return LinearParamScheduler(start, end)(done)
