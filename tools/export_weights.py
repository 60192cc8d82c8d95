"""Export the weights of a run, or imported ones: ``python tools/export_weights.py --run DIR [--format FORMAT]``.

``safetensors`` (default): ``encoder.safetensors``, ``target_encoder.safetensors`` and ``predictor.safetensors``, those
that the method has, with timm's parameter names; ``ssl_zoo.load`` reads the folder. ``timm``, ``huggingface``, ``onnx``
and ``torch-export``: one encoder for these libraries. Each folder has a model card and ``manifest.json`` (origin,
preprocessing, SHA-256), and is written only if the exported features equal those of the run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.api.exporting import export_import, export_run
from ssl_zoo.interop.export import Format
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="run directory")
    which.add_argument("--weights", type=Path, metavar="DIR", help="folder of tools/import_weights.py")
    parser.add_argument("--checkpoint", default="last", help="of --run: last (default), best or a step")
    formats = [format.value for format in Format]
    parser.add_argument("--format", choices=formats, default=Format.safetensors.value, help="default: safetensors")
    parser.add_argument(
        "--network",
        choices=["evaluated", "encoder", "target_encoder"],
        default="evaluated",
        help="default: the encoder that the method evaluates, e.g. the target encoder of I-JEPA",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: export/<checkpoint> in the run")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_args(argv)
    try:
        discover(arguments.plugin)
        options = {"format": Format(arguments.format), "network": arguments.network}
        if arguments.weights:
            exported = export_import(arguments.weights, arguments.out, **options)
        else:
            exported = export_run(arguments.run, arguments.out, checkpoint=arguments.checkpoint, **options)
        for path in sorted(exported.folder.iterdir()):
            print(path)
        print(exported.verification)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
