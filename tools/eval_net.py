"""Evaluate trained encoders: ``python tools/eval_net.py --run DIR [DIR ...] --protocol knn linear [key=value ...]``.

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
from rich.logging import RichHandler

from ssl_zoo.config import Config, compose
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.engine.build import build_run_method, build_views
from ssl_zoo.engine.device import autocast, prepare_method, resolve_precision
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.run_directory import environment
from ssl_zoo.engine.trained import TrainedMethod, choose_network, open_run, open_weights
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.offline import Baselines, EvaluatorResult, ExtractionProgress, evaluate, table
from ssl_zoo.eval.probe import Probe
from ssl_zoo.method import Method
from ssl_zoo.nn import ViT
from ssl_zoo.plugins import discover

ALL_IMAGES = ["probe.train_samples=0", "probe.test_samples=0"]


def run(
    arguments: argparse.Namespace,
    source: Path,
    name: str,
    config: Config,
    baselines: Baselines,
    console: Console,
    ranks: Processes,
) -> Sequence[EvaluatorResult]:
    """Evaluate one network.

    Args:
        source: the directory of a run or a file of weights.
        name: the name of the folder in ``--out`` if there are several runs.
        config: the configuration of the network.
    """
    trained, out = open_network(arguments, source, name, config)
    precision = resolve_precision(config.trainer.precision, ranks.device)
    view = build_views(config.views, config.backbone)[0].config
    identity = {"data": repr(config.data), "size": config.backbone.image_shape, "precision": precision.value}
    identity |= {"mean": list(view.mean), "std": list(view.std), "seed": config.seed}
    cache = None if arguments.no_cache else FeatureCache(out / "features", identity)

    def prepare(method: Method) -> ViT:
        return choose_network(prepare_method(method, config.trainer, ranks.device), arguments.network)

    encoder, initial_encoder = prepare(trained.method), None
    if not arguments.no_baseline:
        initial_encoder = prepare(build_run_method(config))
    metadata = {
        "weights": str(trained.checkpoint),
        "network": arguments.network,
        "step": trained.step,
        "environment": environment(ranks, precision),
    }
    sources = [SOURCES.build(config.data, split) for split in (Split.train, Split.test)]
    results, files = [], []
    with ExtractionProgress(console) as progress:
        for label in arguments.label or [config.probe.label]:
            settings = replace(config.probe, evaluators=arguments.protocol, label=label)
            probe = Probe(
                replace(config, probe=settings),
                *sources,
                view,
                device=ranks.device,
                autocast=autocast(precision, ranks.device),
                cache=cache,
                progress=progress,
            )
            for result in evaluate(probe, encoder, initial_encoder, baselines, identity):
                results.append(result)
                if ranks.is_main:
                    files.append(result.write(out, metadata))
    console.print(table({str(trained.checkpoint): results}))
    console.print("\n".join(map(str, files)), highlight=False)
    return results


def open_network(arguments: argparse.Namespace, source: Path, name: str, config: Config) -> tuple[TrainedMethod, Path]:
    """Load a network and choose the folder of its results; arguments as for ``run``."""
    if arguments.weights:
        out = arguments.out or source.parent / "eval" / source.stem
        return open_weights(source, config, arguments.prefix), out
    trained = open_run(source, config, arguments.checkpoint)
    if arguments.out:
        return trained, arguments.out if len(arguments.run) == 1 else arguments.out / name
    part = "" if arguments.network == "evaluated" else f"_{arguments.network}"
    return trained, source / "eval" / f"{trained.checkpoint.name}{part}"


def distinct_names(folders: Sequence[Path]) -> Sequence[str]:
    """Shorten different paths to their last parts such that they stay distinct: ``ijepa/demo``, ``mae/demo``."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]) for p in parts]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Names of evaluators: tools/list.py evaluators")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, nargs="+", metavar="DIR", help="directories of runs")
    which.add_argument("--weights", type=Path, metavar="FILE", help="safetensors of an encoder; needs --config")
    parser.add_argument("--config", metavar="RECIPE", help="recipe of the network that --weights are for")
    parser.add_argument("--prefix", default="", help="load the tensors of --weights whose names start with this prefix")
    parser.add_argument("--checkpoint", default="last", help="of --run: last (default), best or a step number")
    parser.add_argument(
        "--network",
        choices=["evaluated", "encoder", "target_encoder"],
        default="evaluated",
        help="default: the encoder that the method evaluates, e.g. the target encoder of I-JEPA",
    )
    parser.add_argument("--protocol", nargs="+", required=True, metavar="NAME", help="evaluators; key=value may follow")
    parser.add_argument("--label", nargs="+", metavar="NAME", help="label sets of the data; default: its first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the folder eval of the run, or next to FILE")
    parser.add_argument("--no-baseline", action="store_true", help="do not score the random-init encoder")
    parser.add_argument("--no-cache", action="store_true", help="do not cache features on disk")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. probe.linear.epochs=50 data=scenes")
    arguments = parser.parse_intermixed_args(argv)
    for values in (arguments.run or [], arguments.protocol, arguments.label or []):
        arguments.overrides += [
            str(word) for word in values if "=" in str(word)
        ]  # argparse reads them as further values
        values[:] = [word for word in values if "=" not in str(word)]
    if arguments.weights and not arguments.config:
        parser.error("--weights needs --config RECIPE, the configuration of the network")
    if arguments.run == []:
        parser.error("--run needs the directory of a run before the key=value settings")
    if len({folder.resolve() for folder in arguments.run or []}) < len(arguments.run or []):
        parser.error(f"--run {' '.join(map(str, arguments.run))}: a directory is given twice")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        discover(arguments.plugin)
        overrides = [*ALL_IMAGES, *arguments.overrides]
        sources = arguments.run or [arguments.weights]
        configs = [compose(arguments.config or source / "config.yaml", overrides).config for source in sources]
        with processes(configs[0].trainer.device) as ranks:
            console, baselines = Console(soft_wrap=True, quiet=not ranks.is_main), Baselines()
            results = {
                name: run(arguments, source, name, config, baselines, console, ranks)
                for source, name, config in zip(sources, distinct_names(sources), configs, strict=True)
            }
            if len(results) > 1:
                console.print(table(results))
    except (ValueError, LookupError, OSError, LoaderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
