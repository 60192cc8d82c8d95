"""Visualize what a trained method predicts: ``python tools/visualize.py --run DIR [--images PATH...] [key=value ...]``.

Writes PNG files with one row per image. ``masks``: context and target blocks. ``reconstructions`` (pixel targets):
image, context, predicted patches. ``features`` (teacher targets): image, context, the teacher's features coloured by
principal components, the predicted features, and the cosine similarity of both. ``crops`` (multi-crop methods): the
views, rendered as in training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout, whose packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from ssl_zoo.config import Config, compose
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.files import read_images
from ssl_zoo.data.listing import OUTPUT_MARK
from ssl_zoo.data.sources import Source, build_splits
from ssl_zoo.data.sources.imagefolder import FilesConfig, LimitedConfig
from ssl_zoo.engine.trained import open_run
from ssl_zoo.engine.visualize import save_images, visualize
from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step number")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="files or folders; default: the run's test split")
    parser.add_argument("--num-images", type=int, default=8, help="maximum number of images (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: figures/visualize in the run directory")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. backbone.image_size=48 masks=random")
    arguments = parser.parse_intermixed_args(argv)
    given = arguments.images or []
    arguments.overrides += [word for word in given if "=" in word and not Path(word).exists()]
    arguments.images = [word for word in given if word not in arguments.overrides]
    if arguments.num_images < 1:
        parser.error(f"--num-images {arguments.num_images}: needs at least 1")
    try:
        discover(arguments.plugin)
        config = compose(arguments.run / "config.yaml", arguments.overrides).config
        trained = open_run(arguments.run, config, arguments.checkpoint)
        images = _images(arguments.images, arguments.num_images, config)
        shown = visualize(trained, config, images, seed=arguments.seed)
        folder = arguments.out or arguments.run / "figures" / "visualize"
        if arguments.out and not arguments.out.exists():
            write_atomic(arguments.out / OUTPUT_MARK, "Images made by ssl_zoo; this file keeps them out of data.\n")
        for path in save_images(shown, folder, trained.step):
            print(path)
    except (ValueError, LookupError, OSError, CorruptImage) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _images(paths: Sequence[str] | None, count: int, config: Config) -> list[Tensor]:
    channels = config.backbone.in_channels
    if paths:
        settings = config.data if isinstance(config.data, LimitedConfig) else FilesConfig()
        return read_images(paths, count, settings.limits, settings.pixels(channels))
    splits = build_splits(config.data, channels)
    source = splits.train if splits.test is None else splits.test
    if splits.test is None:
        print(f"training images, since there is no test image: {splits.without_test}", file=sys.stderr)
    return _first_decodable(source, count)


def _first_decodable(source: Source, count: int) -> list[Tensor]:
    images, first_error = [], None
    for number in range(len(source)):
        if len(images) == count:
            break
        try:
            images.append(source.image(number))
        except CorruptImage as error:
            first_error = first_error or error
            print(f"left out: {error}", file=sys.stderr)
    if first_error is not None and not images:
        raise first_error
    return images


if __name__ == "__main__":
    sys.exit(main())
