"""The runs of a study before any is trained: their configurations, identities, directories and costs."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ssl_zoo.config import Composed, ConfigError, compose
from ssl_zoo.config.schema import sections
from ssl_zoo.engine.trainer import run_length
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.online import ProbeConfig
from ssl_zoo.planning.plan import Plan, count_flops
from ssl_zoo.registry import REGISTRIES
from ssl_zoo.study.file import Study, check_columns, check_overrides

_DRAWS = 4  # of masks, over which the operations of an image are averaged


@dataclass(frozen=True)
class Operations:
    """The floating-point operations of a method with its masks; counted when first asked for, in seconds."""

    plan: Plan

    @functools.cached_property
    def per_image(self) -> float:
        """Of forward and backward, without the optimizer; a product and a sum are two."""
        plan, count = self.plan, self.plan.trainer.batch_size
        draws = [
            count_flops(plan.method, plan.views, plan.generators, batch_size=count, sample=draw)["step"]
            for draw in range(_DRAWS)
        ]
        return fmean(draws)


@dataclass(frozen=True)
class Cost:
    """What a run takes, whatever machine it is on.

    Attributes:
        num_steps: None where the data must be opened to tell.
    """

    num_steps: int | None
    batch_size: int
    operations: Operations

    @property
    def flops_per_image(self) -> float:
        return self.operations.per_image

    @property
    def images(self) -> int | None:
        return None if self.num_steps is None else self.num_steps * self.batch_size


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        entry: name of its row.
        recipe: file that the training starts from.
        overrides: everything that is said on its command line, but for the directory.
    """

    entry: str
    seed: int
    recipe: str
    overrides: Sequence[str]
    composed: Composed
    cost: Cost

    @functools.cached_property
    def identity(self) -> str:
        """Equal for runs of equal configuration."""
        return identity(self.composed)

    @property
    def directory(self) -> str:
        """Name of a directory of its own; its end is the identity."""
        return f"{self.entry}-seed{self.seed}-{self.identity}"

    @property
    def title(self) -> str:
        return f"{self.entry}, seed {self.seed}"


def plan_runs(study: Study, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """Every entry with every seed, seed by seed, so that an interrupted study has a row of each entry early.

    Args:
        overrides: for all entries, with the last word.

    Raises:
        ConfigError: an override that does not fit its recipe, masks without room, a column that no probe gives.
    """
    check_overrides(overrides)
    costs: dict[str, Cost] = {}
    counted: dict[str, Operations] = {}  # by all that decides them: entries may differ in their budget alone
    runs = []
    for seed in study.seeds:
        for name, entry in study.entries.items():
            recipe = entry.recipe or study.recipe
            said = (*study.overrides, *entry.overrides, *overrides, f"seed={seed}")
            try:
                composed = compose(recipe, said)
                if name not in costs:
                    _check_probe(study.columns, composed.config.probe)
                    _check_evaluations(study, recipe, said)
                    cost = cost_of(composed)
                    config = composed.config
                    parts = (config.method, config.backbone, config.masks, config.targets, cost.batch_size)
                    costs[name] = replace(cost, operations=counted.setdefault(repr(parts), cost.operations))
            except (ValueError, LookupError) as error:
                raise ConfigError(f"entry {name}: {error}") from error
            runs.append(PlannedRun(name, seed, recipe, said, composed, costs[name]))
    return runs


def identity(composed: Composed, *, with_seed: bool = True) -> str:
    """A hash of everything that a configuration decides but where it is written.

    Sections count with the names of their classes: two options with equal keys and values are different parts.
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
    """The cost of a configured run, from its plan; equal for all seeds.

    Raises:
        ValueError: the run can't be built.
    """
    trainer, plan = composed.config.trainer, Plan.of(composed.config)
    if plan.num_samples is None and trainer.num_steps is None:
        num_steps = None
    else:
        num_steps, _ = run_length(trainer, plan.num_samples or trainer.batch_size)
    return Cost(num_steps, trainer.batch_size, Operations(plan))


def _check_evaluations(study: Study, recipe: str, said: Sequence[str]) -> None:
    for name, evaluation in study.evaluations.items():
        try:
            for protocol in evaluation.evaluators:
                EVALUATORS.get(protocol)
            compose(recipe, (*said, *evaluation.overrides))
        except (ValueError, LookupError) as error:
            raise ConfigError(f"evaluations.{name}: {error}") from error


def _check_probe(columns: Sequence[str], probe: ProbeConfig) -> None:
    if not probe.at_end:
        raise ValueError("probe.at_end=false: a study compares scores after the last step; leave it true")
    check_columns(columns, probe.evaluators, "probe.evaluators")
