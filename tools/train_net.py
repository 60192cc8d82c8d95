"""Pretrain a method: ``python tools/train_net.py --config configs/ijepa/vitl16.yaml [key=value ...]``."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file of a checkout: its packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from ssl_zoo.api.training import names_evaluators, planned_start, train_composed
from ssl_zoo.config import Composed, Config, compose, describe
from ssl_zoo.data.sources import SOURCES
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.engine.alarm import Collapse
from ssl_zoo.engine.cluster import LOST_RANK_STATUS
from ssl_zoo.engine.distributed import LostRank, processes
from ssl_zoo.engine.terminal import log_handler
from ssl_zoo.engine.trainer import NonFiniteLoss
from ssl_zoo.machine import refuse_windows
from ssl_zoo.planning.evaluation import IMAGENET, EvaluationPlan
from ssl_zoo.planning.plan import Plan
from ssl_zoo.planning.scale import Machine, ScalePlan
from ssl_zoo.plugins import discover


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Every key: --help-config. Every name: tools/list.py")
    parser.add_argument("--config", required=True, metavar="RECIPE", help="recipe file, anywhere")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings and group options to change")
    parser.add_argument("--resume", default="auto", help="auto (default), never, or the path of a checkpoint")
    parser.add_argument(
        "--accept-changed-data", action="store_true", help="resume although images or classes have changed since"
    )
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan; no data, no accelerator; checks backbone.init_from"
    )
    parser.add_argument("--help-config", action="store_true", help="print every key with type, default and meaning")
    machine = parser.add_argument_group("machine to plan for, with --dry-run; it need not be here")
    machine.add_argument("--world-size", type=int, metavar="N", help="ranks, one device each (default: 1)")
    machine.add_argument("--device-memory", metavar="SIZE", help="of a device, e.g. 80GB; says whether the run fits")
    machine.add_argument("--device-flops", type=float, metavar="F", help="peak per second (default: 312e12, A100 bf16)")
    machine.add_argument("--utilisation", type=float, metavar="U", help="fraction of it that is reached (default: 0.4)")
    arguments = parser.parse_intermixed_args(argv)
    options = ("world_size", "device_memory", "device_flops", "utilisation")
    arguments.machine = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    if arguments.machine and not arguments.dry_run:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in arguments.machine)
        parser.error(f"{given}: a machine to plan for; add --dry-run, or start the ranks with torchrun")
    return arguments


def plan(composed: Composed, given: Mapping[str, Any], resume: str, console: Console) -> None:
    if (start := planned_start(composed, resume)) is not None:
        console.print(start, markup=False, highlight=False)
    machine = Machine(**given)
    Plan.of(composed.config, machine.world_size).print(console)
    if given:
        ScalePlan(composed.config, machine).print(console)
    if composed.config.probe.evaluators:
        plan_probe(composed.config, machine, console)


def plan_probe(config: Config, machine: Machine, console: Console) -> None:
    """Print memory and hours of one probe, of as many images as the settings and the source's size allow."""
    probe, source = config.probe, SOURCES.get(SOURCES.name_of(config.data))
    num_train = min(filter(None, (probe.train_samples, source.expected_size(config.data))), default=0)
    if not num_train or not probe.test_samples:
        console.print("One probe: unknown until the data are opened; see tools/eval_net.py --dry-run")
        return
    limits = num_train, probe.test_samples, source.num_classes or IMAGENET["num_classes"]
    EvaluationPlan(config.backbone, probe, machine).print(console, "One probe of the run, at most", *limits)


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    console = Console(soft_wrap=True)
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING,
        format="%(message)s",
        handlers=[log_handler(console)],
    )
    try:
        discover(arguments.plugin)
        composed = compose(arguments.config, arguments.overrides)
        if arguments.help_config:
            print(describe(composed))
        elif arguments.dry_run:
            plan(composed, arguments.machine, arguments.resume, console)
        else:
            trainer = composed.config.trainer
            with processes(trainer.device, trainer.parallel, trainer.timeout_minutes) as ranks:
                train_composed(
                    composed,
                    arguments.resume,
                    console,
                    ranks,
                    must_evaluate=names_evaluators(arguments.overrides),
                    accept_changed_data=arguments.accept_changed_data,
                )
    except (ValueError, LookupError, OSError, LoaderError, LostRank, NonFiniteLoss, Collapse) as error:
        print(f"error: {error}", file=sys.stderr)
        return LOST_RANK_STATUS if isinstance(error, LostRank) else 1
    except KeyboardInterrupt:
        print(
            "interrupted before the step could be saved; the same command resumes from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
