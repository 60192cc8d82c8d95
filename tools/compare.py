"""Train the missing runs of a study and write a report: ``python tools/compare.py --study STUDY.yaml [key=value ...]``.

``python tools/compare.py RUN RUN ...`` writes a report on existing run directories.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout, whose packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover
from ssl_zoo.study.comparison import Comparison, compare_runs
from ssl_zoo.study.report import report
from ssl_zoo.study.slurm import slurm_start
from ssl_zoo.study.training import start_local, threads_per_job
from ssl_zoo.study.work import StudyWork, run_table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value | RUN", help="overrides of all entries, or directories")
    parser.add_argument("--study", type=Path, metavar="STUDY", help="path of a study file; see configs/studies")
    parser.add_argument("--seeds", metavar="0,1,...", help="replace the seeds of the study")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their cost without training")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="parallel trainings; they share the CPU threads"
    )
    where.add_argument("--slurm", action="store_true", help="train all runs as Slurm jobs (needs submitit)")
    parser.add_argument(
        "--slurm-option", action="append", default=[], metavar="KEY=VALUE", help="for submitit, e.g. timeout_min=720"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), metavar="DIR", help="runs and reports (default: runs/studies)"
    )
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    arguments = parser.parse_intermixed_args(argv)
    arguments.overrides = [word for word in arguments.words if "=" in word]
    arguments.runs = [Path(word) for word in arguments.words if "=" not in word]
    if bool(arguments.study) == bool(arguments.runs) or (arguments.runs and arguments.overrides):
        parser.error("give --study STUDY [key=value ...], or run directories")
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: needs at least 1")
    return arguments


def write(comparison: Comparison, folder: Path) -> None:
    for path in report(comparison, folder).write(folder):
        print(path)


def study(arguments: argparse.Namespace, command: str) -> int:
    work = StudyWork.of(arguments.study, arguments.out, arguments.overrides, arguments.seeds, command)
    if arguments.dry_run:
        console = Console(soft_wrap=True)
        for line in work.starts():
            console.print(line, markup=False, highlight=False)
        console.print(run_table(work))
        return 0
    if arguments.slurm:
        start, jobs = slurm_start(arguments.out / "slurm", arguments.slurm_option), len(work.runs)
    else:
        start, jobs = partial(start_local, num_threads=threads_per_job(arguments.jobs)), arguments.jobs
    is_done = work.train(start, jobs, arguments.plugin, log=lambda line: print(line, flush=True))
    comparison = work.comparison()
    write(comparison, work.folder)
    if not is_done:
        print("interrupted; the same command resumes from the saved checkpoints", file=sys.stderr)
        return 130
    return 0 if all(row.is_finished for row in comparison.rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    arguments = parse(argv)
    command = shlex.join(["python", "tools/compare.py", *(sys.argv[1:] if argv is None else argv)])
    logging.getLogger("ssl_zoo.config").setLevel(logging.ERROR)  # dropped values are intended here
    try:
        discover(arguments.plugin)
        if arguments.study:
            return study(arguments, command)
        write(compare_runs(arguments.runs, command), arguments.out / "compare")
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
