"""Measure mean and standard deviation per channel, and the range of stored values: the lines to set in a recipe.

python tools/channel_stats.py SRC                            a folder or tar archive of images
python tools/channel_stats.py data=NAME [data.KEY=VALUE ...]  the train split of any data source

Images are decoded as in a training with ``backbone.in_channels`` = ``--in-channels``, without augmentations.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.config import compose_section
from ssl_zoo.data.shards.inputs import AllImages
from ssl_zoo.data.sources import Source, Split, build_source
from ssl_zoo.data.statistics import PERCENTILES, ImageStatistics, measure
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover

_NUM_NAMED = 5  # unreadable images that are named


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="SRC | data=NAME", help="see above; data.KEY=VALUE may follow")
    parser.add_argument("--num-images", type=int, default=1000, metavar="N", help="randomly chosen (default: 1000)")
    parser.add_argument("--in-channels", type=int, default=3, metavar="C", help="as backbone.in_channels (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.num_images < 1 or arguments.in_channels < 1:
        parser.error("--num-images and --in-channels are at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    try:
        discover(arguments.plugin)
        found = measure(_source(arguments.words, arguments.in_channels), arguments.num_images, arguments.seed)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(found, arguments.in_channels))
    return 0


def _source(words: Sequence[str], channels: int) -> Source:
    if any(word.startswith("data=") for word in words):
        return build_source(compose_section("data", words), Split.train, channels)
    if len(words) > 1:
        raise ValueError(f"{' '.join(words)}: give one folder or archive, or data=NAME with its keys")
    return AllImages(words[0], channels)


def report(found: ImageStatistics, channels: int) -> str:
    """Write the measurements as comments, and the keys to set as YAML."""
    kinds = f" of {', '.join(found.types)} pixels" if found.types else ""
    lines = [f"# {found.num_images} images{kinds}, {len(found.unreadable)} unreadable"]
    lines += [f"#   {error}" for error in found.unreadable[:_NUM_NAMED]]
    lines += [f"# {found.out_of_range:.1%} of the pixels are at the ends of the range, 0 or 255"]
    if found.low is not None:
        percentiles = zip(found.percentiles, PERCENTILES, strict=True)
        shown = ", ".join(f"{_number(value)} ({percent:g} %)" for value, percent in percentiles)
        lines += [f"# stored values {_number(found.low)} .. {_number(found.high)}; percentiles {shown}"]
    lines += [f"backbone:\n  in_channels: {channels}"]
    lines += ["views:  # with views=two_crops or multi_crop, in each of its crops", f"  mean: {found.mean}"]
    lines += [f"  std: {found.std}"]
    if found.low is not None:
        whole, inner = (
            f"[{_number(low)}, {_number(high)}]"
            for low, high in ((found.low, found.high), (found.percentiles[0], found.percentiles[-1]))
        )
        lines += ["data:", f"  intensity_range: {whole}  # or {inner}, which clips 0.1 % at either end"]
        lines += ["# mean and std are those of the range in use: measure them again with data.intensity_range set"]
    return "\n".join(lines)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


if __name__ == "__main__":
    sys.exit(main())
