"""Import weights of other projects: ``python tools/import_weights.py FILE_OR_FOLDER [--out DIR]``.

Reads official files (.pth, .pt, .pth.tar, .safetensors), files of timm and folders of Hugging Face without executing
anything in them, recognises method and sizes, accounts for every tensor, and writes a folder with safetensors,
``manifest.json`` and ``recipe.yaml``. ``tools/eval_net.py --weights DIR``, ``backbone.init_from=DIR`` and
``ssl_zoo.load(DIR)`` read it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.interop.download import download
from ssl_zoo.interop.import_folder import write_import
from ssl_zoo.interop.importing import Options, import_weights
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover

_ENDINGS = (".pth.tar", ".safetensors", ".pth", ".pt", ".bin", ".tar")


def image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, metavar="FILE_OR_FOLDER", help="weights to import")
    parser.add_argument(
        "--download", metavar="NAME", help="published weights (tools/list.py weights); OWNER/NAME[@REVISION] of the hub"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="of downloads; default: $FVCORE_CACHE (~/.torch/iopath_cache), $HF_HOME",
    )
    parser.add_argument(
        "--as", dest="method", metavar="METHOD", help="the method, where names and shapes don't show it"
    )
    parser.add_argument("--network", choices=["encoder", "target_encoder"], help="take this network alone")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads of the encoder")
    parser.add_argument("--predictor-heads", type=int, metavar="N", help="attention heads of predictor or decoder")
    parser.add_argument("--image-size", type=image_size, metavar="HxW", help="size of images, where it is not square")
    parser.add_argument("--norm-eps", type=float, metavar="E", help="epsilon of the layer norms (default: 1e-6)")
    parser.add_argument("--allow-partial", action="store_true", help="take the tensors that match, report the others")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: imported/<name of the source>")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.download is None):
        parser.error("give either a FILE_OR_FOLDER or --download NAME")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("httpx", "httpx2"):  # of huggingface_hub; they log every request
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        discover(arguments.plugin)
        source, method, origin = arguments.source, arguments.method, {}
        if arguments.download is not None:
            found = download(arguments.download, arguments.cache)
            source, method, origin = found.path, method or found.method, found.source
        options = Options(
            method=method,
            network=arguments.network,
            num_heads=arguments.num_heads,
            predictor_heads=arguments.predictor_heads,
            image_size=arguments.image_size,
            norm_eps=arguments.norm_eps,
            allow_partial=arguments.allow_partial,
        )
        imported = import_weights(source, options)
        print("\n".join(imported.report()))
        out = arguments.out or Path("imported") / (arguments.download or short_name(source))
        manifest = write_import(imported, out, origin)
        print(f"licence: {manifest.source['licence']}\n{out}")
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def short_name(source: Path) -> str:
    """Return the name of a file without its ending, of which ``.pth.tar`` is one."""
    ending = next((ending for ending in _ENDINGS if source.name.endswith(ending)), "")
    return source.resolve().name.removesuffix(ending)


if __name__ == "__main__":
    sys.exit(main())
