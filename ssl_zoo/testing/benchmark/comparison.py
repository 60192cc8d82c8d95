"""Comparison of recipes in turns, so that other load on the machine affects all of them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssl_zoo.testing.benchmark.baselines.catalogue import BASELINES
from ssl_zoo.testing.benchmark.case import Case, CaseRunner, Facts
from ssl_zoo.testing.benchmark.clock import CPU_TIME

# In the order of a step; the method's own modules stand in place of "forward".
_ENGINE_PHASES = ("data wait", "forward", "backward", "forward and backward", "clip", "optimizer", "ema")
_WAITS, _FIXED = 0.1, 0.3  # fractions of a step above which waiting for data, or the fixed cost, is the bottleneck


@dataclass(frozen=True)
class Timing:
    """Quartiles of a duration over all timed steps, in seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, values: Sequence[float]) -> "Timing":
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """Measurements of one case on this machine."""

    case: Case
    facts: Facts
    step: Timing
    phases: Mapping[str, float]  # median seconds per step
    peak_flops: float  # of this machine's fastest matmul, measured between the rounds
    memory_bytes: int | None
    cpu_seconds: float | None = None  # median per step; None on an accelerator

    @property
    def images_per_second(self) -> float:
        return self.facts.batch_size / self.step.median

    @property
    def flops_per_second(self) -> float | None:
        """FLOP/s of the method, without the optimizer; None where its FLOPs were not counted."""
        per_image = self.facts.flops_per_image.get("step")
        return None if per_image is None else per_image * self.images_per_second

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation (MFU): the achieved fraction of the matmul peak."""
        return None if self.flops_per_second is None else self.flops_per_second / self.peak_flops

    @property
    def limit(self) -> str:
        """The bottleneck of this recipe."""
        waiting = self.phases.get("data wait", 0.0) / self.step.median
        if waiting > _WAITS:
            return f"loader: a step waits {waiting:.0%} of its time for data"
        fixed = self.facts.fixed_seconds
        if fixed is None:
            return ""
        if fixed > _FIXED * self.step.median:
            return f"fixed cost: a step of one image takes {fixed / self.step.median:.0%} of this one"
        return f"compute: {self.utilisation:.0%} of the matmul peak"

    def plain(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            "name": self.case.name,
            "baseline": self.case.baseline,
            "world_size": self.case.world_size,
            "with_data": self.case.with_data,
            **asdict(self.facts),
            "images_per_second": self.images_per_second,
            "step_seconds": asdict(self.step),
            "step_cpu_seconds": self.cpu_seconds,
            "phase_seconds": dict(self.phases),
            "flops_per_second": self.flops_per_second,
            "peak_flops_per_second": self.peak_flops,
            "utilisation": self.utilisation,
            "memory_bytes": self.memory_bytes,
            "limit": self.limit,
        }


def baselines_of(result: Result, results: Sequence[Result]) -> Mapping[str, Result]:
    """Return the baselines by name that do the same work as a recipe, at its precision where they have it.

    A baseline has none itself. Where ``trainer.precision=auto`` chose differently for both, nothing can be compared.
    """
    if result.case.baseline is not None:
        return {}
    baselines = [other for other in results if other.case.baseline is not None and _is_comparable(result, other)]
    baselines.sort(key=lambda other: other.case.work == result.case.work)  # auto and the precision that it chose
    return {other.case.baseline: other for other in baselines}


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast a recipe is as a baseline."""

    images_per_second: float
    cpu_time: float | None  # None on an accelerator; steadier where other programs share the machine

    @classmethod
    def of(cls, recipe: Result, baseline: Result) -> "SpeedUp":
        measured = recipe.cpu_seconds is not None and baseline.cpu_seconds is not None
        return cls(
            recipe.images_per_second / baseline.images_per_second,
            baseline.cpu_seconds / recipe.cpu_seconds if measured else None,
        )


def figures_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return all figures as JSON values, with the speed-up of each recipe over its baselines."""
    return [
        {
            **result.plain(),
            "speed_up": {
                name: asdict(SpeedUp.of(result, other)) for name, other in baselines_of(result, results).items()
            },
        }
        for result in results
    ]


def _is_comparable(result: Result, baseline: Result) -> bool:
    has_precision = BASELINES[baseline.case.baseline].has_recipes_precision
    return (
        result.case.world_size == baseline.case.world_size
        and result.case.work[:-1] == baseline.case.work[:-1]
        and (not has_precision or result.facts.precision == baseline.facts.precision)
    )


def compare(
    cases: Sequence[Case],
    *,
    rounds: int,
    steps: int,
    warmup: int,
    report: Callable[[str], None] = lambda line: None,
) -> Sequence[Result]:
    """Train ``steps`` steps of every case in turn, ``rounds`` times, after ``warmup`` steps each.

    The processes of all cases live until the end, hence hold their memory while another case trains.

    Raises:
        ValueError: a recipe can't be built or run.
        RuntimeError: a process of a case died.
    """
    runners: list[CaseRunner] = []
    try:
        for case in cases:
            report(f"starting {case.name}")
            runners.append(CaseRunner(case))
        for runner in runners:
            runner.steps(warmup)
        timed: list[list[Mapping[str, float]]] = [[] for _ in runners]
        # One case measures the peak for all of its precision and number of processes: it takes longer than small steps.
        measuring = {_peak_key(runner): runner for runner in reversed(runners)}
        peaks: dict[tuple[str, int], list[float]] = {key: [] for key in measuring}
        for number in range(rounds):
            report(f"round {number + 1} of {rounds}")
            for position, runner in enumerate(runners):
                if measuring[_peak_key(runner)] is runner:
                    peaks[_peak_key(runner)].append(runner.peak())
                timed[position].extend(runner.steps(steps))
        medians = {key: statistics.median(values) for key, values in peaks.items()}
        return [_result(runner, s, medians[_peak_key(runner)]) for runner, s in zip(runners, timed, strict=True)]
    finally:
        for runner in runners:
            runner.close()


def _peak_key(runner: CaseRunner) -> tuple[str, int]:
    return runner.facts.precision, runner.case.world_size


def _result(runner: CaseRunner, steps: Sequence[Mapping[str, float]], peak: float) -> Result:
    names = dict.fromkeys(name for step in steps for name in step if name not in ("step", CPU_TIME))
    cpu_seconds = [step[CPU_TIME] for step in steps if CPU_TIME in step]
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    # The replay of a CUDA graph has no phases; only the steps before its capture had some.
    medians = {name: seconds for name, seconds in medians.items() if seconds or name == "data wait"}
    return Result(
        runner.case,
        runner.facts,
        Timing.of([step["step"] for step in steps]),
        in_step_order(medians),
        peak,
        runner.memory(),
        statistics.median(cpu_seconds) if cpu_seconds else None,
    )


def in_step_order(phases: Mapping[str, float]) -> dict[str, float]:
    """Sort phases as in a step, the method's modules before the rest of the forward pass."""
    modules = {name: seconds for name, seconds in phases.items() if name not in _ENGINE_PHASES}
    result: dict[str, float] = {}
    for name in _ENGINE_PHASES:
        if name == "forward" and name in phases:
            result |= modules
            result["loss and rest of forward"] = max(0.0, phases["forward"] - sum(modules.values()))
        elif name in phases:
            result[name] = phases[name]
    return result
