"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ssl_zoo.engine.hooks import EvaluationTimes
from ssl_zoo.engine.metrics import Record
from ssl_zoo.engine.status import ScoreHistory
from ssl_zoo.engine.trainer import Trainer


class _BarAboveText(Progress):
    """A bar with the description of its task below it: beside it, a terminal of usual width would cut off both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (task.description for task in self.tasks)


class ProgressBar:
    """Shows step, time left, loss, images per second, share of the time spent waiting for data, probes and scores.

    Args:
        live: draw a bar if the console is a terminal.
        scores: of the run so far; the first one is shown.
        probes: when the run is probed; None if it never is.
    """

    def __init__(
        self, console: Console, live: bool, scores: ScoreHistory | None = None, probes: EvaluationTimes | None = None
    ) -> None:
        self.console, self.live = console, live and console.is_terminal
        self.scores, self.probes = scores or ScoreHistory(), probes
        self._training = ""

    def open(self, trainer: Trainer) -> None:
        self._num_steps, self._first_step, self._started = trainer.num_steps, trainer.step, time.monotonic()
        if trainer.step:
            self._print(
                f"resumes from step {trainer.step:,} of {trainer.num_steps:,}, epoch {trainer.epoch:.2f}"
                + (f"; {self._score()}" if self.scores.last else "")
            )
        if self.live:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = _BarAboveText(*columns, console=self.console)
            self._task = self._progress.add_task("", total=trainer.num_steps, completed=trainer.step)
            self._progress.start()

    def write(self, record: Record) -> None:
        step = record["step"]
        if "loss" not in record:
            scores = "  ".join(self.scores.text(name, with_baseline=True) for name in self.scores.last)
            self._print(f"step {step}  {scores}")
        else:
            self._training = (
                f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['images_per_second']:.0f} images/s  "
                f"data {record['data_wait']:.1%}"
            )
        if self.live:
            description = "  ".join(filter(None, [self._training, self._next(step)]))
            self._progress.update(self._task, completed=step, description=description)
        elif "loss" in record:
            parts = [f"step {step}/{self._num_steps}", self._training, f"left {self._left(step)}", self._next(step)]
            self._print("  ".join(filter(None, parts)))

    def close(self) -> None:
        if self.live:
            self._progress.stop()

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def _next(self, step: int) -> str:
        """Return the step of the next probe and the last score."""
        parts = [f"next probe {probe}"] if (probe := next_probe(self.probes, step, self._num_steps)) else []
        return "  ".join(parts + ([self._score()] if self.scores.last else []))

    def _score(self) -> str:
        return self.scores.text(next(iter(self.scores.last)))

    def _left(self, step: int) -> str:
        done = max(1, step - self._first_step)
        return duration((time.monotonic() - self._started) / done * (self._num_steps - step))


def next_probe(probes: EvaluationTimes | None, step: int, num_steps: int) -> int | None:
    """Return the step after which the next probe runs; None if there is none."""
    if probes is None or step >= num_steps:
        return None
    following = (step // probes.every_steps + 1) * probes.every_steps if probes.every_steps else num_steps + 1
    if following <= num_steps:
        return following
    return num_steps if probes.at_end else None


def duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds, or as days."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days"
