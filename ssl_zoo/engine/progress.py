"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ssl_zoo.engine.metrics import Record
from ssl_zoo.engine.trainer import Trainer


class ProgressBar:
    """Shows step, loss, images per second, share of time spent waiting for data, and time left."""

    def __init__(self, console: Console, live: bool) -> None:
        self.console, self.live = console, live and console.is_terminal

    def open(self, trainer: Trainer) -> None:
        self._num_steps, self._first_step, self._started = trainer.num_steps, trainer.step, time.monotonic()
        if self.live:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.description}"), console=self.console)
            self._task = self._progress.add_task("", total=trainer.num_steps, completed=trainer.step)
            self._progress.start()

    def write(self, record: Record) -> None:
        if "loss" not in record:
            scores = "  ".join(f"{k} {v:.4g}" for k, v in record.items() if k not in ("step", "epoch"))
            self.console.print(f"step {record['step']}  {scores}", highlight=False)
            return
        text = (
            f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['images_per_second']:.0f} images/s  "
            f"data {record['data_wait']:.1%}"
        )
        if self.live:
            self._progress.update(self._task, completed=record["step"], description=text)
        else:
            self.console.print(
                f"step {record['step']}/{self._num_steps}  {text}  left {self._left(record)}", highlight=False
            )

    def close(self) -> None:
        if self.live:
            self._progress.stop()

    def _left(self, record: Record) -> str:
        done = max(1, record["step"] - self._first_step)
        seconds = (time.monotonic() - self._started) / done * (self._num_steps - record["step"])
        return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days"
