"""The planned runs of a study: configurations, identities, directories and costs."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ssl_zoo.config import Composed, ConfigError, compose
from ssl_zoo.config.keys import written
from ssl_zoo.config.schema import sections
from ssl_zoo.engine.settings import MonitorConfig
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.probe import ProbeConfig
from ssl_zoo.planning.plan import Plan
from ssl_zoo.registry import REGISTRIES
from ssl_zoo.study.file import Study, check_columns, check_overrides


@dataclass(frozen=True)
class Cost:
    """The cost of a run, independent of the machine.

    Attributes:
        num_steps: None if it depends on the number of samples and that is unknown until the data is opened.
    """

    num_steps: int | None
    batch_size: int
    plan: Plan  # of this run, or of another one with equal FLOPs per image

    @property
    def flops_per_image(self) -> float:
        """FLOPs of forward and backward pass without the optimizer; counted on first access, which takes seconds."""
        return self.plan.step_flops

    @property
    def images(self) -> int | None:
        return None if self.num_steps is None else self.num_steps * self.batch_size


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        entry: name of its row.
        recipe: path of the recipe file.
        overrides: all overrides of its command line except ``output_dir``.
    """

    entry: str
    seed: int
    recipe: str
    overrides: Sequence[str]
    composed: Composed
    cost: Cost

    @functools.cached_property
    def identity(self) -> str:
        """A hash that runs of equal configuration share."""
        return identity(self.composed)

    @property
    def directory(self) -> str:
        """Name of its directory, which ends with the identity."""
        return f"{self.entry}-seed{self.seed}-{self.identity}"

    @property
    def title(self) -> str:
        return f"{self.entry}, seed {self.seed}"


def plan_runs(study: Study, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """Plan every entry with every seed, seed by seed, so that every entry has a result early.

    Args:
        overrides: applied to all entries, after the study's and the entries' own.

    Raises:
        ConfigError: an override does not fit its recipe, masks do not fit the grid, or no evaluator computes a column.
    """
    check_overrides(overrides)
    costs: dict[str, Cost] = {}
    counted: dict[str, Plan] = {}  # by everything they depend on: entries may differ only in their budget
    runs = []
    for seed in study.seeds:
        for name, entry in study.entries.items():
            recipe = entry.recipe or study.recipe
            all_overrides = (*study.overrides, *entry.overrides, *overrides, f"seed={seed}")
            try:
                composed = compose(recipe, all_overrides)
                if name not in costs:
                    _check_probe(study.columns, composed.config.probe)
                    _check_loggers(composed.config.monitor)
                    _check_evaluations(study, recipe, all_overrides)
                    cost = cost_of(composed)
                    config = composed.config
                    parts = (config.method, config.backbone, config.masks, config.targets, cost.batch_size)
                    costs[name] = replace(cost, plan=counted.setdefault(repr(parts), cost.plan))
            except (ValueError, LookupError) as error:
                raise ConfigError(f"entry {name}: {error}") from error
            runs.append(PlannedRun(name, seed, recipe, all_overrides, composed, costs[name]))
    return runs


def identity(composed: Composed, *, with_seed: bool = True) -> str:
    """Hash a configuration without its output directory.

    The hash includes the names of the chosen classes: two options with equal keys and values are different parts.
    """
    values = composed.plain()
    del values["output_dir"]
    if not with_seed:
        del values["seed"]
    chosen = {name: getattr(composed.config, name) for name in sections() if name in REGISTRIES}
    parts = {name: REGISTRIES[name].name_of(config) for name, config in chosen.items() if config is not None}
    content = json.dumps({"parts": parts, "values": values}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def cost_of(composed: Composed) -> Cost:
    """Compute the cost of a run from its plan; it is equal for all seeds.

    Raises:
        ValueError: the run can't be built.
    """
    plan = Plan.of(composed.config)
    return Cost(plan.length and plan.length[0], composed.config.trainer.batch_size, plan)


def _check_evaluations(study: Study, recipe: str, overrides: Sequence[str]) -> None:
    for name, evaluation in study.evaluations.items():
        try:
            for evaluator in evaluation.evaluators:
                EVALUATORS.get(evaluator)
            compose(recipe, (*overrides, *evaluation.overrides))
        except (ValueError, LookupError) as error:
            raise ConfigError(f"evaluations.{name}: {error}") from error


def _check_probe(columns: Sequence[str], probe: ProbeConfig) -> None:
    if not probe.at_end:
        raise ValueError("probe.at_end=false: a study compares scores after the last step; leave it true")
    check_columns(columns, probe.evaluators, "probe.evaluators")


def _check_loggers(monitor: MonitorConfig) -> None:
    if "jsonl" not in monitor.loggers:
        loggers = written([*monitor.loggers, "jsonl"])
        raise ValueError(f"a study reads the metrics.jsonl of its runs: write monitor.loggers={loggers}")
