"""Recompute golden fixtures and compare: ``python tools/verify_golden.py FILE...``.

Prints the largest error and the tolerance of every quantity in a file. Exit code 0: all quantities are within their
tolerances; 1: some are not; 2: a file is unreadable or of an unknown kind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout, whose packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.machine import refuse_windows
from ssl_zoo.testing.golden import FixtureError, table, verify_file


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    parser = argparse.ArgumentParser(
        prog="verify_golden",
        description="Recompute golden fixtures of published implementations and compare the results.",
        epilog="Exit code: 0 all within tolerance, 1 some are not, 2 a file is unreadable or of an unknown kind.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .safetensors fixture")
    codes = [_verify(path) for path in parser.parse_args(argv).files]
    return max(codes)


def _verify(path: Path) -> int:
    try:
        findings = verify_file(path)
    except FixtureError as error:
        print(f"verify_golden: {error}", file=sys.stderr)
        return 2
    failed = [finding.quantity for finding in findings if not finding.within]
    verdict = f"FAIL: {', '.join(failed)}" if failed else f"ok, {len(findings)} quantities within tolerance"
    print(f"{path}\n{table(findings)}\n{verdict}\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
