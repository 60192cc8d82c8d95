"""Evaluate trained encoders: ``python tools/eval_net.py --run DIR [DIR ...] --evaluators knn linear [key=value ...]``.

The tool prints every score next to that of the random-init encoder and writes one JSON file per evaluator and label
set. Several runs share one table.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from ssl_zoo.api.evaluation import (
    ALL_IMAGES,
    Evaluation,
    Request,
    Session,
    eval_folder,
    evaluate_encoder,
    evaluate_trained,
    sections,
)
from ssl_zoo.api.loading import load
from ssl_zoo.config import Config, compose
from ssl_zoo.data.sources import SourceConfig, build_splits
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.engine.distributed import processes
from ssl_zoo.engine.settings import Device
from ssl_zoo.engine.terminal import log_handler
from ssl_zoo.engine.trained import TrainedMethod, open_run, open_weights
from ssl_zoo.eval.offline import EvaluatorResult, table
from ssl_zoo.eval.probe import ProbeConfig
from ssl_zoo.eval.split import labels_of
from ssl_zoo.machine import refuse_windows
from ssl_zoo.nn import BackboneConfig
from ssl_zoo.planning.evaluation import EvaluationPlan
from ssl_zoo.planning.scale import Machine
from ssl_zoo.plugins import discover


def run(
    arguments: argparse.Namespace, source: Path, name: str, config: Config, session: Session
) -> Sequence[EvaluatorResult]:
    """Evaluate one network and print its table.

    Args:
        source: the directory of a run or a file of weights.
        name: the name of the folder in ``--out`` if there are several runs.
        config: the configuration of the network.
    """
    trained, out = open_network(arguments, source, name, config)
    evaluation = evaluate_trained(trained, config, out, request_of(arguments), session)
    show(str(trained.checkpoint), evaluation, session.console)
    return evaluation.results


def evaluate_weights(arguments: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    """Evaluate an encoder of an exported or imported folder, whose manifest describes it."""
    encoder = load(arguments.weights, network=arguments.network)
    if arguments.dry_run:
        data, probe, _ = sections(encoder, words)
        plan(arguments, encoder.backbone, probe, data, console)
        return
    folder = arguments.weights if arguments.weights.is_dir() else arguments.weights.parent
    with processes(Device.auto) as ranks:
        console.quiet = not ranks.is_main
        out = arguments.out or folder / "eval" / encoder.origin.network
        evaluation = evaluate_encoder(encoder, words, out, request_of(arguments), Session(ranks, console))
        show(str(encoder.origin.path), evaluation, console)


def plan(
    arguments: argparse.Namespace, backbone: BackboneConfig, probe: ProbeConfig, data: SourceConfig, console: Console
) -> None:
    """Print memory and hours of each evaluator. The data are opened to count images and classes; none is decoded."""
    splits = build_splits(data, backbone.in_channels)
    probe = replace(probe, evaluators=list(arguments.evaluators))
    num_networks = 1 if arguments.no_baseline else 2
    limits = (splits.train, probe.train_samples), (splits.test or (), probe.test_samples)
    num_train, num_test = (min(len(source), limit or len(source)) for source, limit in limits)
    labels = labels_of(splits.train, arguments.label[0] if arguments.label else probe.label)
    num_classes = 0 if labels is None else int(labels.max()) + 1
    evaluation = EvaluationPlan(backbone, probe, Machine(**arguments.machine), num_networks)
    evaluation.print(console, "The data", num_train, num_test, num_classes)


def request_of(arguments: argparse.Namespace) -> Request:
    return Request(
        arguments.evaluators,
        arguments.label or (None,),
        arguments.network,
        has_baseline=not arguments.no_baseline,
        is_cached=not arguments.no_cache,
    )


def show(title: str, evaluation: Evaluation, console: Console) -> None:
    console.print(table({title: evaluation.results}))
    console.print("\n".join(map(str, evaluation.files)), highlight=False)


def open_network(arguments: argparse.Namespace, source: Path, name: str, config: Config) -> tuple[TrainedMethod, Path]:
    """Load a network and choose the folder of its results; arguments as for ``run``."""
    if arguments.weights:
        out = arguments.out or source.parent / "eval" / source.stem
        return open_weights(source, config, arguments.prefix), out
    trained = open_run(source, config, arguments.checkpoint)
    if arguments.out:
        return trained, arguments.out if len(arguments.run) == 1 else arguments.out / name
    return trained, eval_folder(source, trained, arguments.network)


def distinct_names(folders: Sequence[Path]) -> Sequence[str]:
    """Shorten different paths to their last parts such that they stay distinct: ``ijepa/demo``, ``mae/demo``."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]) for p in parts]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Names of evaluators: tools/list.py evaluators")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, nargs="+", metavar="DIR", help="directories of runs")
    which.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="a folder of weights (exported or imported), a file in it, or with --config any safetensors of an encoder",
    )
    parser.add_argument("--config", metavar="RECIPE", help="recipe of the network that --weights are for")
    parser.add_argument("--prefix", default="", help="load the tensors of --weights whose names start with this prefix")
    parser.add_argument("--checkpoint", default="last", help="of --run: last (default), best or a step number")
    parser.add_argument(
        "--network",
        choices=["evaluated", "encoder", "target_encoder"],
        default="evaluated",
        help="default: the encoder that the method evaluates, e.g. the target encoder of I-JEPA",
    )
    parser.add_argument("--evaluators", nargs="+", required=True, metavar="NAME", help="names; key=value may follow")
    parser.add_argument("--label", nargs="+", metavar="NAME", help="label sets of the data; default: its first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the folder eval of the run, or next to FILE")
    parser.add_argument("--no-baseline", action="store_true", help="do not score the random-init encoder")
    parser.add_argument("--no-cache", action="store_true", help="do not cache features on disk")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument(
        "--dry-run", action="store_true", help="print memory and hours of each evaluator, encode nothing"
    )
    machine = parser.add_argument_group("machine to plan for, with --dry-run; it need not be here")
    machine.add_argument("--world-size", type=int, metavar="N", help="ranks, one device each (default: 1)")
    machine.add_argument("--device-flops", type=float, metavar="F", help="peak per second (default: 312e12, A100 bf16)")
    machine.add_argument("--utilisation", type=float, metavar="U", help="fraction of it that is reached (default: 0.4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. probe.linear.epochs=50 data=scenes")
    arguments = parser.parse_intermixed_args(argv)
    options = ("world_size", "device_flops", "utilisation")
    arguments.machine = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    if arguments.machine and not arguments.dry_run:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in arguments.machine)
        parser.error(f"{given}: a machine to plan for; add --dry-run, or start the ranks with torchrun")
    for values in (arguments.run or [], arguments.evaluators, arguments.label or []):
        # argparse reads overrides after an option of several values as further values.
        arguments.overrides += [str(word) for word in values if "=" in str(word)]
        values[:] = [word for word in values if "=" not in str(word)]
    if arguments.run == []:
        parser.error("--run needs the directory of a run before the key=value settings")
    if len({folder.resolve() for folder in arguments.run or []}) < len(arguments.run or []):
        parser.error(f"--run {' '.join(map(str, arguments.run))}: a directory is given twice")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[log_handler(Console())])
    try:
        discover(arguments.plugin)
        overrides = [*ALL_IMAGES, *arguments.overrides]
        if arguments.weights and not arguments.config:
            evaluate_weights(arguments, overrides, Console(soft_wrap=True))
            return 0
        sources = arguments.run or [arguments.weights]
        configs = [compose(arguments.config or source / "config.yaml", overrides).config for source in sources]
        if arguments.dry_run:
            for config in configs:
                plan(arguments, config.backbone, config.probe, config.data, Console(soft_wrap=True))
            return 0
        with processes(configs[0].trainer.device) as ranks:
            session = Session(ranks, Console(soft_wrap=True, quiet=not ranks.is_main))
            results = {
                name: run(arguments, source, name, config, session)
                for source, name, config in zip(sources, distinct_names(sources), configs, strict=True)
            }
            if len(results) > 1:
                session.console.print(table(results))
    except (ValueError, LookupError, OSError, LoaderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
