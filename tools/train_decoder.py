"""Train a decoder of predictions to pixels: ``python tools/train_decoder.py --run DIR [key=value ...]``.

The decoder generates the pixels of a target block from what the run's frozen predictor predicts there (I-JEPA, figure
6). Its folder is ``decoder`` in the run directory. The same command resumes it, and ``tools/visualize.py --decode``
plots samples. ``--measure`` prints how well the samples of a trained decoder preserve the objects of rendered scenes.

Keys are those of the decoder. ``data.KEY`` is the run's, for images that have moved.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout, whose packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from omegaconf import OmegaConf
from rich.console import Console

from ssl_zoo.config import Config, compose, compose_settings
from ssl_zoo.data.sources import build_splits
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.decoding.decoder import DecoderConfig
from ssl_zoo.decoding.measure import measure
from ssl_zoo.decoding.training import FOLDER, decoded_view, open_decoder, train_decoder
from ssl_zoo.engine.build import build_generators
from ssl_zoo.engine.distributed import LostRank, processes
from ssl_zoo.engine.terminal import log_handler
from ssl_zoo.engine.trained import TrainedMethod, open_run
from ssl_zoo.engine.trainer import NonFiniteLoss
from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--checkpoint", default="last", help="of the run: last (default), best, or a step number")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="values of the decoder, e.g. configs/decoder/64px.yaml"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the decoder's folder; default: decoder in the run's")
    parser.add_argument("--resume", default="auto", help="auto (default), never, or the path of a checkpoint")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure a trained decoder on scenes")
    parser.add_argument("--sample-seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of --measure")
    parser.add_argument(
        "--min-visible",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="of --measure: only blocks whose context shows this much of the object (default: all blocks)",
    )
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trainer.num_steps=5000 block_size=32")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    console = Console(soft_wrap=True)
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[log_handler(console)])
    try:
        discover(arguments.plugin)
        of_run = [word for word in arguments.overrides if word.startswith("data.")]
        own = [word for word in arguments.overrides if word not in of_run]
        config = compose(arguments.run / "config.yaml", of_run).config
        trained = open_run(arguments.run, config, arguments.checkpoint)
        if arguments.measure:
            _measure(arguments, trained, config, console)
        else:
            _train(arguments, trained, config, own, console)
    except (ValueError, LookupError, OSError, LoaderError, LostRank, NonFiniteLoss) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _train(
    arguments: argparse.Namespace, trained: TrainedMethod, config: Config, overrides: Sequence[str], console: Console
) -> None:
    values = compose_settings(DecoderConfig, arguments.config, overrides)
    settings: DecoderConfig = OmegaConf.to_object(values)
    trainer, options = settings.trainer, {"folder": arguments.out, "resume": arguments.resume}
    with processes(trainer.device, trainer.parallel, trainer.timeout_minutes) as ranks:
        folder = train_decoder(arguments.run, trained, config, values, console, ranks, **options)
        if ranks.is_main:
            console.print(f"decoder: {folder}", highlight=False)


def _measure(arguments: argparse.Namespace, trained: TrainedMethod, config: Config, console: Console) -> None:
    folder = arguments.out or arguments.run / FOLDER
    decoder = open_decoder(folder, arguments.run, trained, config)
    view = decoded_view(config)
    [generator] = build_generators([view], config.masks, config.backbone).values()
    splits = build_splits(config.data, config.backbone.in_channels)
    options = {"seeds": arguments.sample_seeds, "min_visible": arguments.min_visible}
    found = measure(decoder, splits, view, generator, **options)
    write_atomic(folder / "measurement.json", json.dumps(found.plain(), indent=1) + "\n")
    console.print(found.table(), highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
