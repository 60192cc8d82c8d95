"""The state of runs, from the files in their directories: quick for hundreds of runs and while they train.

This module imports no torch. A run itself keeps ``status.json`` (``ssl_zoo.engine.status_file``); of ``metrics.jsonl``
only the end is read. Directories of versions without ``status.json`` are read as well.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of
from ssl_zoo.scores import BASELINE_SUFFIX, LABEL_FREE

STATUS_FILE = "status.json"
_RECIPE = re.compile(r"a run of (\S+), by")  # in the first line of a run's config.yaml
_TAIL_BYTES = 65536  # some hundred records
_STALE_SECONDS = 600.0  # a run of another machine without a new record for so long
_STALE_RECORDS = 20  # or for the usual time of that number of records, if that is longer
_LOG, _SUBMITTED = "log.txt", "slurm"  # in the directory of a run of a study, or of a submitted one, before it starts
_RUN_OF_STUDY = re.compile(r".+-seed-?\d+-[0-9a-f]{10}")  # name of its directory


class State(Enum):
    """What a run does, as far as its directory tells."""

    waiting = "waiting"  # submitted, or the next of a study
    running = "running"
    finished = "finished"  # the last step is saved
    stopped = "stopped"  # by a signal or the collapse alarm's policy; the same command resumes it
    failed = "failed"  # by an error, or killed
    stale = "stale"  # it should run, but has logged nothing for long


@dataclass
class ScoreHistory:
    """The scores of a run's probes.

    Attributes:
        last: by name, of the last probe; the first is that of the first evaluator.
        best: the highest of the trained network by name, without the label-free ones.
        baseline: of the random-init network.
    """

    step: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take over the scores of a record of ``metrics.jsonl``; nothing from a record of training."""
        if "loss" in record:
            return
        values = {name: value for name, value in record.items() if name not in ("step", "epoch")}
        scores = {name: value for name, value in values.items() if not name.endswith(BASELINE_SUFFIX)}
        self.step, self.last = record["step"], scores
        self.baseline |= {name: values[name + BASELINE_SUFFIX] for name in scores if name + BASELINE_SUFFIX in values}
        for name in scores.keys() - set(LABEL_FREE) if self.step else ():
            self.best[name] = max(scores[name], self.best.get(name, scores[name]))

    def add_file(self, path: Path, last_step: float = float("inf")) -> None:
        """Take over the scores of a ``metrics.jsonl`` up to a step."""
        if not path.is_file():
            return
        with open(path) as lines:
            for line in lines:
                # Nearly all lines are of training steps, and need no parsing.
                if '"loss":' not in line and (record := _parsed(line)) and record["step"] <= last_step:
                    self.add(record)

    def text(self, name: str, *, with_baseline: bool = False) -> str:
        """Return a score with the best and, if asked for, that at random initialisation."""
        notes = [f"best {score_text(name, self.best[name])}"] if name in self.best else []
        if with_baseline and self.step and name in self.baseline:
            notes.append(f"random init {score_text(name, self.baseline[name])}")
        return f"{name} {score_text(name, self.last[name])}" + (f" ({', '.join(notes)})" if notes else "")


def score_text(name: str, value: float) -> str:
    """Write a score as a percentage, or a label-free measure as a number."""
    return f"{value:.4g}" if name in LABEL_FREE or not 0 <= value <= 1 else f"{value:.1%}"


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    Attributes:
        recipe: folder and name of the recipe.
        reason: the error of a failed run, or what is known of a stale one.
        step: the last one that was logged, or saved.
        seconds_left: at the speed since the run started or resumed.
        age_seconds: since the last record.
    """

    path: str
    recipe: str | None
    state: State
    reason: str | None = None
    step: int = 0
    num_steps: int | None = None
    seconds_left: float | None = None
    images_per_second: float | None = None
    scores: ScoreHistory = field(default_factory=ScoreHistory)
    age_seconds: float | None = None

    @classmethod
    def read(cls, run: Path, now: float | None = None) -> "RunStatus":
        """Read a run directory; the run may be training.

        Args:
            now: in seconds since the epoch; None is the present.
        """
        now = time.time() if now is None else now
        if not (run / "config.yaml").is_file():
            error = _last_error(run)
            return cls(str(run), None, State.failed if error else State.waiting, error)
        status, environment = _json(run / STATUS_FILE), _json(run / "environment.json")
        metrics = run / "metrics.jsonl"
        logged_at = metrics.stat().st_mtime if metrics.is_file() else None
        records = [record for record in _tail(metrics) if "images_per_second" in record]
        saved = [step_of(path) for path in list_checkpoints(run)[-1:]]
        step = max([*saved, *(record["step"] for record in records[-1:])], default=0)
        num_steps = environment.get("num_steps")
        age = None if logged_at is None else max(0.0, now - logged_at)
        speed = records[-1]["images_per_second"] if records else None
        seconds_per_step = _seconds_per_step(status, step, logged_at, environment.get("batch_size"), speed)
        state, reason = _state(run, status, age, _usual_gap(records, seconds_per_step))
        if num_steps and saved and saved[0] >= num_steps:
            state, reason = State.finished, None
        if "scores" in status:
            scores = ScoreHistory(**status["scores"])
        else:
            scores = ScoreHistory()
            scores.add_file(metrics)
        is_running = state is State.running and num_steps and seconds_per_step
        left = (num_steps - step) * seconds_per_step if is_running else None
        return cls(str(run), recipe_of(run), state, reason, step, num_steps, left, speed, scores, age)

    def plain(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return asdict(self) | {"state": self.state.value}


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run directories in a folder and below, in the order of their names; not what lies inside of them.

    Folders of a study count from its start on, those of a submitted training while it waits.
    """
    if _is_run(folder):
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        return
    for name in inner:
        if not (folder / name).is_symlink():
            yield from find_runs(folder / name)


def recipe_of(run: Path) -> str | None:
    """Return folder and name of a run's recipe, such as ``ijepa/vitb16.yaml``; None if its config does not tell."""
    with open(run / "config.yaml") as file:
        found = _RECIPE.search(file.readline())
    return found[1] if found else None


def this_process() -> dict[str, Any]:
    """Return what identifies this process for ``is_alive``."""
    return {"host": _host(), "pid": os.getpid(), "process_start": _process_start(os.getpid())}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Return whether a process of ``this_process`` lives; None if it is of another machine or container."""
    if process.get("host") != _host():
        return None
    return _process_start(process["pid"]) == process["process_start"]


def _host() -> str:
    """Name this machine; process numbers mean something within one namespace, as of a container, alone."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(namespace)}" if namespace.is_symlink() else platform.node()


def _process_start(pid: int) -> str | None:
    """Return when a process started, in the kernel's unit, since numbers are used again; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self").exists():
        return None
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return "alive"


def _is_run(folder: Path) -> bool:
    if (folder / "config.yaml").is_file():
        return any((folder / name).exists() for name in ("metrics.jsonl", "environment.json", "checkpoints"))
    is_of_study = _RUN_OF_STUDY.fullmatch(folder.name) and (folder / _LOG).is_file()
    return bool(is_of_study) or (folder / _SUBMITTED).is_dir()


def _state(run: Path, status: Mapping[str, Any], age: float | None, gap: float) -> tuple[State, str | None]:
    state, reason = State(status.get("state", "running")), status.get("error")
    if state is not State.running:
        error = _last_error(run) if _is_newer(run / _LOG, run / STATUS_FILE) else None
        return (State.failed, error) if error else (state, reason)
    alive = is_alive(status) if status else None
    if alive is not None:
        return (State.running, None) if alive else (State.failed, "its process was killed")
    if age is None or age <= max(_STALE_SECONDS, _STALE_RECORDS * gap):
        return State.running, None
    return State.stale, f"no new record; it trained on {_machine(status)}"


def _machine(status: Mapping[str, Any]) -> str:
    return str(status["host"]).partition(" ")[0] if "host" in status else "an unknown machine"


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime > other.stat().st_mtime


def _last_error(run: Path) -> str | None:
    """Return the last line of a study's log of the run if it is an error."""
    lines = [line for line in _last_text(run / _LOG).splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines and lines[-1].startswith("error: ") else None


def _seconds_per_step(
    status: Mapping[str, Any], step: int, logged_at: float | None, batch_size: int | None, speed: float | None
) -> float | None:
    """Return the time of a step since the start or resume, with probes and checkpoints, or that of the steps alone."""
    done = step - status.get("first_step", step)
    if done > 0 and logged_at is not None and logged_at > status["started"]:
        return (logged_at - status["started"]) / done
    return batch_size / speed if batch_size and speed else None


def _usual_gap(records: list[dict[str, Any]], seconds_per_step: float | None) -> float:
    if len(records) < 2 or seconds_per_step is None:
        return 0.0
    return (records[-1]["step"] - records[-2]["step"]) * seconds_per_step


def _tail(path: Path) -> list[dict[str, Any]]:
    """Parse the last records; the first line that was read, and the one that is being written, may be incomplete."""
    return [record for line in _last_text(path).splitlines() if (record := _parsed(line))]


def _last_text(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _json(path: Path) -> dict[str, Any]:
    return (_parsed(path.read_text()) or {}) if path.is_file() else {}
