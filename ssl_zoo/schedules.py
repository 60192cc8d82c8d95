"""Schedules, built from fvcore's ParamScheduler: pure functions from the fraction of a run to a value."""

from collections.abc import Sequence
from enum import Enum

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)


class ScheduleShape(Enum):
    """The interpolation between the start and end value of a schedule."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


def make_schedule(shape: ScheduleShape, start: float, end: float) -> ParamScheduler:
    """Interpolate from ``start`` at fraction 0 to ``end`` at fraction 1; a constant schedule ignores ``end``."""
    if shape is ScheduleShape.constant:
        return LinearParamScheduler(start, start)  # fvcore's constant scheduler raises at fraction 1
    return (LinearParamScheduler if shape is ScheduleShape.linear else CosineParamScheduler)(start, end)


def multistep(start: float, factor: float, milestones: Sequence[int], num_steps: int) -> ParamScheduler:
    """Multiply ``start`` by ``factor`` at each milestone before ``num_steps``."""
    reached = [milestone for milestone in milestones if milestone < num_steps]
    if not reached:
        return make_schedule(ScheduleShape.constant, start, start)
    values = [start * factor**count for count in range(len(reached) + 1)]
    return MultiStepParamScheduler(values, num_updates=num_steps, milestones=reached)


def with_warmup(start: float, warmup_fraction: float, main: ParamScheduler) -> ParamScheduler:
    """Put a linear warmup from ``start`` to ``main(0)`` before ``main``, which is squeezed into the rest of the run.

    Args:
        warmup_fraction: fraction of the run that the warmup takes; it ends at exactly ``main(0)``.
    """
    if warmup_fraction <= 0:
        return main
    if warmup_fraction >= 1:
        return LinearParamScheduler(start, main(0.0))
    warmup = LinearParamScheduler(start, main(0.0))
    return CompositeParamScheduler([warmup, main], [warmup_fraction, 1 - warmup_fraction], ["rescaled", "rescaled"])


def after_warmup(start: float, end: float, epoch: float, warmup_epochs: float) -> float:
    """Change linearly from ``start`` at epoch 0 to ``end`` after ``warmup_epochs``, and keep it; constant before 0."""
    done = min(1.0, max(0.0, epoch) / warmup_epochs) if warmup_epochs else 1.0
    return LinearParamScheduler(start, end)(done)
