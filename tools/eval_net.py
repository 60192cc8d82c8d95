"""Evaluate a trained encoder: ``python tools/eval_net.py --run DIR --protocol knn linear [key=value ...]``.

Prints every score beside that of the encoder with its random initial weights, and writes one JSON file a protocol.
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
from ssl_zoo.data.loader import LoaderError
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.engine.build import build_views
from ssl_zoo.engine.device import autocast, prepare_method, resolve_precision
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.run_directory import environment
from ssl_zoo.engine.trained import TrainedMethod, choose_network, open_run, open_weights
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.offline import ExtractionProgress, evaluate, table
from ssl_zoo.eval.online import OnlineProbe
from ssl_zoo.method import Method, build_method
from ssl_zoo.nn import ViT
from ssl_zoo.registry import discover

ALL_IMAGES = ["probe.train_samples=0", "probe.test_samples=0"]


def run(arguments: argparse.Namespace, config: Config, trained: TrainedMethod, out: Path, ranks: Processes) -> None:
    console, data = Console(soft_wrap=True, quiet=not ranks.is_main), config.data
    precision = resolve_precision(config.trainer.precision, ranks.device)
    view = build_views(config.method, config.backbone)[0].config
    cache = None
    if not arguments.no_cache:
        identity = {"data": repr(data), "size": config.backbone.image_shape, "precision": precision.value}
        identity |= {"mean": list(view.mean), "std": list(view.std), "seed": config.seed}
        cache = FeatureCache(out / "features", identity)

    def ready(method: Method) -> ViT:
        return choose_network(prepare_method(method, config.trainer, ranks.device), arguments.network)

    encoder, initial = ready(trained.method), None
    if not arguments.no_baseline:
        initial = ready(build_method(config.method, config.backbone, config.targets, seed=config.seed))
    facts = {
        "weights": str(trained.checkpoint),
        "network": arguments.network,
        "step": trained.step,
        "environment": environment(ranks, precision),
    }
    sources, results, files = [SOURCES.build(data, split) for split in (Split.train, Split.test)], [], []
    with ExtractionProgress(console) as progress:
        for label in arguments.label or [config.probe.label]:
            probe = OnlineProbe(
                replace(config.probe, protocols=arguments.protocol, label=label),
                *sources,
                image_size=config.backbone.image_shape,
                mean=view.mean,
                std=view.std,
                seed=config.seed,
                device=ranks.device,
                autocast=autocast(precision, ranks.device),
                cache=cache,
                progress=progress,
            )
            for result in evaluate(probe, encoder, initial):
                results.append(result)
                if ranks.is_main:
                    files.append(result.write(out, facts))
    console.print(table(results, str(trained.checkpoint)))
    console.print("\n".join(map(str, files)), highlight=False)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Names of protocols: tools/list.py evaluators")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="directory of a run")
    which.add_argument("--weights", type=Path, metavar="FILE", help="safetensors of an encoder; needs --config")
    parser.add_argument("--config", metavar="RECIPE", help="recipe that --weights belong to")
    parser.add_argument("--prefix", default="", help="take the tensors of --weights whose names begin like this")
    parser.add_argument("--checkpoint", default="last", help="of --run: last (default), best or the number of a step")
    parser.add_argument(
        "--network",
        choices=["evaluated", "encoder", "target_encoder"],
        default="evaluated",
        help="default: what the method hands to its users, I-JEPA its target encoder",
    )
    parser.add_argument("--protocol", nargs="+", required=True, metavar="NAME", help="evaluators; key=value may follow")
    parser.add_argument("--label", nargs="+", metavar="NAME", help="label sets of the data; default: its first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the folder eval of the run, or beside FILE")
    parser.add_argument("--no-baseline", action="store_true", help="leave the random-init encoder out")
    parser.add_argument("--no-cache", action="store_true", help="keep no features on the disk")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. probe.linear.epochs=50 data=scenes")
    arguments = parser.parse_intermixed_args(argv)
    for values in (arguments.protocol, arguments.label or []):  # argparse takes overrides for more of them
        arguments.overrides += [word for word in values if "=" in word]
        values[:] = [word for word in values if "=" not in word]
    if arguments.weights and not arguments.config:
        parser.error("--weights needs --config RECIPE, which says what network they belong to")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        discover(arguments.plugin)
        recipe = arguments.config or arguments.run / "config.yaml"
        config = compose(recipe, [*ALL_IMAGES, *arguments.overrides]).config
        with processes(config.trainer.device) as ranks:
            if arguments.run:
                trained = open_run(arguments.run, config, arguments.checkpoint)
                part = "" if arguments.network == "evaluated" else f"_{arguments.network}"
                out = arguments.out or arguments.run / "eval" / f"{trained.checkpoint.name}{part}"
            else:
                trained = open_weights(arguments.weights, config, arguments.prefix)
                out = arguments.out or arguments.weights.parent / "eval" / arguments.weights.stem
            run(arguments, config, trained, out, ranks)
    except (ValueError, LookupError, OSError, LoaderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
