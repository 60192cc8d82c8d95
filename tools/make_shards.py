"""Write images as shards: tar archives in webdataset's format with a manifest, which data=webdataset reads.

python tools/make_shards.py SRC OUT                              all images of a folder or tar archive, in one split
python tools/make_shards.py data=NAME [data.KEY=VALUE ...] OUT   a data source: its splits in OUT/train and OUT/test
python tools/make_shards.py --index SHARD... OUT                 only a manifest, for existing shards
python tools/make_shards.py --check OUT                          verify shards against their manifest
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.config import compose_section
from ssl_zoo.data.shards.adopt import index_shards
from ssl_zoo.data.shards.check import check_shards
from ssl_zoo.data.shards.inputs import AllImages
from ssl_zoo.data.shards.write import make_shards
from ssl_zoo.data.sources import SOURCES, MissingSplit, Split, build_source
from ssl_zoo.data.summary import source_summary
from ssl_zoo.machine import available_cpus, refuse_windows
from ssl_zoo.plugins import discover


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="SRC | data=NAME ... | OUT", help="see above; OUT comes last")
    parser.add_argument("--shard-size", metavar="256MB", type=_bytes, default="256MB", help="approximate shard size")
    parser.add_argument("--resize-short", metavar="PIXELS", type=_pixels, help="limit of the shorter side, or none")
    parser.add_argument("--in-channels", metavar="C", type=_positive, default=3, help="of resized images (default: 3)")
    parser.add_argument("--split", choices=[split.value for split in Split], help="with data=NAME: only this split")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=available_cpus(), help="processes; default: all cores"
    )
    parser.add_argument("--index", action="store_true", help="write a manifest for existing shards")
    parser.add_argument("--label", action="append", default=[], metavar="KEY", help="with --index: a label in .json")
    parser.add_argument("--check", action="store_true", help="verify OUT; with a source, after writing it")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_intermixed_args(argv)
    arguments.overrides = [word for word in arguments.words if re.match(r"data(\.\w+)*=", word)]
    *arguments.sources, arguments.out = [w for w in arguments.words if w not in arguments.overrides] or [None]
    num_sources = 0 if arguments.overrides or (arguments.check and not arguments.sources) else 1
    is_wrong = not arguments.index and len(arguments.sources) != num_sources
    if arguments.out is None or is_wrong or arguments.workers < 0:
        parser.error("give SRC OUT, or data=NAME OUT, or --index SHARD... OUT, or --check OUT")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    try:
        discover(arguments.plugin)
        folders = _make(arguments)
        problems = [problem for folder in folders if arguments.check for problem in check_shards(str(folder))]
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if arguments.check and not problems:
        print(f"{' and '.join(map(str, folders))}: no problems found")
    return 1 if problems else 0


def _make(arguments: argparse.Namespace) -> list[Path]:
    """Write the requested shards or manifest; return the folders of all sets."""
    out, sets, channels = Path(arguments.out), {}, arguments.in_channels
    check = arguments.resize_short is not None  # otherwise files are copied, whatever they hold
    if arguments.index:
        index_shards(arguments.sources, out, label_keys=arguments.label, report=print)
    elif arguments.sources:
        sets[out] = Path(arguments.sources[0]).name, partial(AllImages, arguments.sources[0], channels, check)
    elif arguments.overrides:
        config = compose_section("data", arguments.overrides)
        for split in [Split(arguments.split)] if arguments.split else Split:
            name = f"{SOURCES.name_of(config)}, {split.value} split"
            sets[out / split.value] = name, partial(build_source, config, split, channels)
    options = {"shard_bytes": arguments.shard_size, "resize_short": arguments.resize_short}
    for folder, (name, build) in list(sets.items()):
        try:
            source = build()
        except MissingSplit as missing:
            if arguments.split:
                raise
            print(f"no shards in {folder}: {missing}")
            del sets[folder]
            continue
        print(f"{name}: {source_summary(source)}")
        make_shards(source, folder, name=name, num_workers=arguments.workers, report=print, **options)
    return list(sets) or [out]


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    return _positive(text[:-2]) * units[text[-2:]] if text[-2:] in units else _positive(text)


def _pixels(text: str) -> int | None:
    return None if text == "none" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer above 0, with KB, MB or GB for bytes")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
