"""Benchmark recipes side by side: ``python tools/benchmark.py --config A.yaml [B.yaml ...] [key=value ...]``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout: its packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from ssl_zoo.config import compose
from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover
from ssl_zoo.testing.benchmark.baselines.catalogue import BASELINES
from ssl_zoo.testing.benchmark.case import Case
from ssl_zoo.testing.benchmark.columns import with_baselines
from ssl_zoo.testing.benchmark.comparison import compare, figures_of
from ssl_zoo.testing.benchmark.loading import compare_loading
from ssl_zoo.testing.benchmark.monitoring import measure_monitoring
from ssl_zoo.testing.benchmark.table import baseline_table, table

_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")  # commas between values, not within a list


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, nargs="+", metavar="RECIPE", help="recipe files")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings and group options for all recipes")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=list(BASELINES),
        help="a column beside each recipe that trains the same with other code: a straightforward I-JEPA, at the "
        "recipe's precision or in fp32, or the modules of a library; repeatable",
    )
    parser.add_argument("--sweep", metavar="KEY=V1,V2", help="one column per value: trainer.batch_size=32,64")
    parser.add_argument("--scaling", metavar="1,2,...", help="one column per number of processes on this machine")
    parser.add_argument("--with-data", action="store_true", help="load the recipe's data (default: one batch of noise)")
    parser.add_argument(
        "--loading",
        action="store_true",
        help="measure data loading of the first recipe on one core, compared with torchvision, instead of steps",
    )
    parser.add_argument(
        "--monitoring",
        action="store_true",
        help="measure the CPU time of loggers and visualizations in the first recipe, with its data, instead of steps",
    )
    parser.add_argument("--images", type=int, default=224, help="number of images for --loading (default: 224)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each recipe (default: 5)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn (default: 4)")
    parser.add_argument(
        "--warmup", type=int, default=3, help="untimed steps of each recipe before the first turn (default: 3)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write all figures to this file")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_intermixed_args(argv)
    # argparse takes overrides after --config for more recipes.
    arguments.overrides += [word for word in arguments.config if "=" in word]
    arguments.config = [word for word in arguments.config if "=" not in word]
    return arguments


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Build the cases, one per column of the table.

    Raises:
        ValueError: a recipe, override or list is invalid, or the tool runs under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "tools/benchmark.py starts its processes itself: run it without torchrun and with --scaling 1,2,..."
        )
    key, _, values = (arguments.sweep or "").partition("=")
    swept = [[f"{key}={value}"] for value in _OUTSIDE_BRACKETS.split(values)] if arguments.sweep else [[]]
    sizes = [int(size) for size in arguments.scaling.split(",")] if arguments.scaling else [1]
    shared = {"with_data": arguments.with_data, "plugins": arguments.plugin}
    recipes = []
    for recipe in arguments.config:
        for extra in swept:
            config = compose(recipe, [*arguments.overrides, *extra]).config
            name = " ".join([f"{Path(recipe).parent.name}/{Path(recipe).stem}", *extra])
            recipes += [Case(name, config, world_size=size, **shared) for size in sizes]
    return with_baselines(recipes, arguments.baseline, report=lambda line: print(line, file=sys.stderr))


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments, console = parse(argv), Console(soft_wrap=True)
    try:
        discover(arguments.plugin)
        if arguments.loading:
            config = compose(arguments.config[0], arguments.overrides).config
            loading = compare_loading(config, num_images=arguments.images, rounds=arguments.rounds)
            tables, figures = [loading.table()], loading.plain()
        elif arguments.monitoring:
            config = compose(arguments.config[0], arguments.overrides).config
            cost = measure_monitoring(config, rounds=arguments.rounds, steps=arguments.steps)
            tables, figures = [cost.table()], cost.plain()
        else:
            counts = {"rounds": arguments.rounds, "steps": arguments.steps, "warmup": arguments.warmup}
            results = compare(cases(arguments), **counts, report=lambda line: print(line, file=sys.stderr))
            tables, figures = [table(results), baseline_table(results)], figures_of(results)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(*filter(None, tables), sep="\n")
    if arguments.json:
        write_atomic(arguments.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
