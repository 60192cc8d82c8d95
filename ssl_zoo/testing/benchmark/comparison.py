"""Several recipes on one machine, turn by turn, so that whatever else it does hits them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssl_zoo.testing.benchmark.case import Contest, Contestant, Facts

# In the order of a step; names that a method gives its parts come where "forward" stands.
_ENGINE_STRETCHES = ("data wait", "forward", "backward", "forward and backward", "clip", "optimizer", "averages")
_WAITS, _FIXED = 0.1, 0.3  # parts of a step from which on waiting for data, or its fixed cost, limits it


@dataclass(frozen=True)
class Timing:
    """A duration over all timed steps, in seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, values: Sequence[float]) -> "Timing":
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """What one recipe did on this machine."""

    contest: Contest
    facts: Facts
    step: Timing
    stretches: Mapping[str, float]  # median seconds per step of what its time went into
    peak_flops: float  # of this machine's best matrix product, measured between the rounds
    memory_bytes: int

    @property
    def images_per_second(self) -> float:
        return self.facts.batch_size / self.step.median

    @property
    def flops_per_second(self) -> float | None:
        """Of the method's own operations; None where they were not counted."""
        per_image = self.facts.flops_per_image.get("step")
        return None if per_image is None else per_image * self.images_per_second

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation: the achieved share of the matrix peak."""
        return None if self.flops_per_second is None else self.flops_per_second / self.peak_flops

    @property
    def limit(self) -> str:
        """What a faster run of this recipe would have to change first."""
        waiting = self.stretches.get("data wait", 0.0) / self.step.median
        if waiting > _WAITS:
            return f"loader: a step waits {waiting:.0%} of its time for data"
        fixed = self.facts.fixed_seconds
        if fixed is None:
            return ""
        if fixed > _FIXED * self.step.median:
            return f"fixed cost: a step of one image takes {fixed / self.step.median:.0%} of this one"
        return f"compute: {self.utilisation:.0%} of the matrix peak"

    def plain(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "name": self.contest.name,
            "world_size": self.contest.world_size,
            "with_data": self.contest.with_data,
            **asdict(self.facts),
            "images_per_second": self.images_per_second,
            "step_seconds": asdict(self.step),
            "stretch_seconds": dict(self.stretches),
            "flops_per_second": self.flops_per_second,
            "peak_flops_per_second": self.peak_flops,
            "utilisation": self.utilisation,
            "memory_bytes": self.memory_bytes,
            "limit": self.limit,
        }


def race(
    contests: Sequence[Contest],
    *,
    rounds: int,
    steps: int,
    warmup: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Sequence[Result]:
    """Let every contestant train ``steps`` steps in turn, ``rounds`` times, after ``warmup`` steps each.

    Contestants of one process each wait for each other; those of several processes run after the others have left,
    because processes that only wait still hold memory and ports.

    Raises:
        ValueError: a recipe that can't be built or run.
        RuntimeError: a process of a contestant died.
    """
    started: list[Contestant] = []
    try:
        for contest in contests:
            tell(f"starting {contest.name}")
            started.append(Contestant(contest))
        for contestant in started:
            contestant.steps(warmup)
        taken: list[list[Mapping[str, float]]] = [[] for _ in started]
        peaks: list[list[float]] = [[] for _ in started]
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for position, contestant in enumerate(started):
                peaks[position].append(contestant.peak())
                taken[position].extend(contestant.steps(steps))
        return [_result(c, s, statistics.median(p)) for c, s, p in zip(started, taken, peaks, strict=True)]
    finally:
        for contestant in started:
            contestant.close()


def _result(contestant: Contestant, steps: Sequence[Mapping[str, float]], peak: float) -> Result:
    names = dict.fromkeys(name for step in steps for name in step if name != "step")
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    # A recorded step has no parts; only the steps before it was recorded had some.
    medians = {name: seconds for name, seconds in medians.items() if seconds or name == "data wait"}
    return Result(
        contestant.contest,
        contestant.facts,
        Timing.of([step["step"] for step in steps]),
        ordered(medians),
        peak,
        contestant.memory(),
    )


def ordered(stretches: Mapping[str, float]) -> dict[str, float]:
    """In the order of a step, the parts of the forward before what is left of it."""
    parts = {name: seconds for name, seconds in stretches.items() if name not in _ENGINE_STRETCHES}
    result: dict[str, float] = {}
    for name in _ENGINE_STRETCHES:
        if name == "forward" and name in stretches:
            result |= parts
            result["loss and rest of forward"] = max(0.0, stretches["forward"] - sum(parts.values()))
        elif name in stretches:
            result[name] = stretches[name]
    return result
