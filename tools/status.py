"""Show the runs in folders, while they train as well: ``python tools/status.py RUNS [...]``.

A row per run directory: recipe, state, steps, time left, images per second, last and best score of the probe, age of
the last record. Folders of studies and of submitted trainings are read like all others.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file of a checkout: its packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_zoo.engine.status import RunStatus, State, find_runs, score_text
from ssl_zoo.machine import refuse_windows

_STYLES = {
    State.running: "green",
    State.stale: "yellow",
    State.failed: "red",
    State.stopped: "yellow",
    State.waiting: "dim",
}
_FILE_WIDTH = 240  # of a table in a file or a pipe, which has no width of its own
_SHOWN_REASON = 100


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("--json", action="store_true", help="print a list of objects with all scores instead")
    arguments = parser.parse_args(argv)
    try:
        found = [RunStatus.read(run) for run in _runs(arguments.runs)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([status.plain() for status in found], indent=1))
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    console.print(_table(found))
    counts = Counter(status.state for status in found)
    console.print(", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]), highlight=False)
    for status in found:
        if status.reason is not None:
            reason = status.reason[:_SHOWN_REASON] + ("..." if len(status.reason) > _SHOWN_REASON else "")
            console.print(Text(f"{status.path}: {reason}"))
    return 0


def _runs(paths: Sequence[Path]) -> list[Path]:
    runs: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; give a run directory or a folder of runs, such as runs")
        found = dict.fromkeys(find_runs(path))
        if not found:
            raise ValueError(f"{path} holds no run: no folder in it has a config.yaml beside a metrics.jsonl")
        runs |= found
    return list(runs)


def _table(found: Sequence[RunStatus]) -> Table:
    """Return the table; the folder that all runs are in is its title."""
    folder = os.path.commonpath([Path(status.path).absolute() for status in found])
    if len(found) == 1:
        folder = os.path.dirname(folder)
    table = Table(title=f"Runs in {folder}", title_justify="left")
    for heading in ("run", "recipe", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("step", "left", "images/s", "score", "best", "last record"):
        table.add_column(heading, justify="right")
    for status in found:
        table.add_row(*_row(status, folder))
    return table


def _row(status: RunStatus, folder: str) -> list[str | Text]:
    run = os.path.relpath(Path(status.path).absolute(), folder)
    state = Text(status.state.value, _STYLES.get(status.state, ""))
    # The first score is that of the first evaluator.
    name = next(iter(status.scores.last), None)
    score = "" if name is None else f"{name} {score_text(name, status.scores.last[name])}"
    best = score_text(name, status.scores.best[name]) if name in status.scores.best else ""
    speed = "" if status.images_per_second is None else f"{status.images_per_second:,.0f}"
    steps = "" if status.num_steps is None else f"{status.step:,} of {status.num_steps:,}"
    age = "" if status.age_seconds is None else f"{_short(status.age_seconds)} ago"
    left = _short(status.seconds_left) if status.seconds_left is not None else ""
    return [Text(run), Text(status.recipe or ""), state, steps, left, speed, score, best, age]


def _short(seconds: float) -> str:
    """Write a time in its two largest units, such as ``3 h 20 min``."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60):02d} min"
    return f"{int(hours / 24)} d {int(hours % 24):02d} h"


if __name__ == "__main__":
    sys.exit(main())
