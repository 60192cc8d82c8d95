"""The columns of a benchmark: recipes, and the baselines that are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ssl_zoo.engine.settings import Precision
from ssl_zoo.testing.benchmark.baselines.catalogue import (
    BASELINES,
    check_baseline,
    combinations,
    has_method,
    not_installed,
)
from ssl_zoo.testing.benchmark.case import Case


def with_baselines(recipes: Sequence[Case], names: Sequence[str], report: Callable[[str], None]) -> list[Case]:
    """Put the baselines of each recipe before it; one serves all recipes that give it the same work.

    A baseline that is not installed is reported and left out.

    Raises:
        ValueError: a baseline has no method of any recipe, or does not have a setting of one.
    """
    usable = [name for name in dict.fromkeys(names) if _is_usable(name, recipes, report)]
    result: list[Case] = []
    for recipe in recipes:
        for name in usable:
            if has_method(name, recipe.config):
                baseline = _baseline(name, recipe)
                if not any(case.baseline == name and case.work == baseline.work for case in result):
                    result.append(baseline)
        result.append(recipe)
    if all(recipe.work == recipes[0].work for recipe in recipes):
        return [replace(case, name=case.baseline or case.name) for case in result]
    return result


def _is_usable(name: str, recipes: Sequence[Case], report: Callable[[str], None]) -> bool:
    if not any(has_method(name, case.config) for case in recipes):
        raise ValueError(f"--baseline {name} trains none of the recipes' methods; there are {combinations()}")
    message = not_installed(name)
    if message:
        report(f"skipped: {message}")
    return message is None


def _baseline(name: str, recipe: Case) -> Case:
    check_baseline(name, recipe.config)
    config = recipe.config
    if not BASELINES[name].has_recipes_precision:
        config = replace(config, trainer=replace(config.trainer, precision=Precision.fp32))
    return replace(recipe, name=f"{name}, {recipe.name}", config=config, baseline=name, world_size=1)
