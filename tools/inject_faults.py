"""Inject faults into tiny trainings and report which are survived: ``python tools/inject_faults.py [--only NAME ...]``.

Processes, signals and file systems are real. A fault is survived when it has the outcome that the table requires, and
the same command then resumes to the losses and weights of a run without faults, bit for bit. Linux only; some faults
mount file systems, which requires root. Exit code: 0 if all possible faults are survived, else 1.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout: its packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.testing.faults.catalogue import SCENARIOS, line, table
from ssl_zoo.testing.faults.processes import NotSurvived
from ssl_zoo.testing.faults.scenario import Bench, choose


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings of all trainings, e.g. trainer.device=cuda"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"scenarios: {', '.join(SCENARIOS)}")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="folder on the file system to be tested (default: /tmp)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table to this file")
    arguments = parser.parse_intermixed_args(argv)
    arguments.settings += [word for word in arguments.only if "=" in word]  # argparse takes them for values of --only
    arguments.only = [word for word in arguments.only if "=" not in word]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    command = shlex.join(["python", "tools/inject_faults.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        if sys.platform != "linux":
            raise ValueError("faults are injected through /proc, which only Linux has; run this tool there")
        scenarios = choose(SCENARIOS, arguments.only)
        if arguments.folder:
            arguments.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="faults-") as folder:
            bench, reports = Bench(Path(folder), arguments.settings), []
            reference = bench.reference()
            for scenario in scenarios:
                reports.append(scenario.run(bench))
                print(line(reports[-1]), file=sys.stderr, flush=True)
                text = table(reports, reference, command)
                if arguments.out:
                    write_atomic(arguments.out, text)  # so far, in case the tool is interrupted
    except (ValueError, OSError, NotSurvived) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0 if all(report.has_passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
