"""Export the weights of a run: ``python tools/export_weights.py --run DIR [--checkpoint STEP] [--out DIR]``.

Writes those of ``encoder.safetensors``, ``target_encoder.safetensors`` and ``predictor.safetensors`` that the method
has, and ``manifest.json`` with config, step, versions and SHA-256. Encoders have timm's parameter names, which
``tools/eval_net.py --weights FILE --config RECIPE`` and ``timm.create_model(..., checkpoint_path=FILE)`` read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.config import compose
from ssl_zoo.engine.trained import open_run
from ssl_zoo.interop.weights import export_weights
from ssl_zoo.plugins import discover


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last (default), best or a step")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: the run's export/<checkpoint>")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_args(argv)
    try:
        discover(arguments.plugin)
        composed = compose(arguments.run / "config.yaml")
        trained = open_run(arguments.run, composed.config, arguments.checkpoint)
        out = arguments.out or arguments.run / "export" / trained.checkpoint.name
        config = {"choices": dict(composed.choices), **composed.plain()}
        for path in export_weights(trained, out, name=composed.choices["method"], config=config):
            print(path)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
