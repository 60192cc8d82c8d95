"""A run keeps ``status.json``, from which ``tools/status.py`` shows what it does."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from ssl_zoo.engine.loggers import Record
from ssl_zoo.engine.status import STATUS_FILE, ScoreHistory, State, this_process
from ssl_zoo.engine.trainer import Hook, Trainer
from ssl_zoo.io import write_atomic


class StatusFile(Hook):
    """Writes the state of a run when it starts, is probed and ends; the main process also hands it the records.

    Args:
        run: the run directory.
        scores: filled with the scores of the run, those before a resume included.
    """

    name = "status_file"
    follows = ("metrics", "collapse_alarm", "checkpointer")  # whose errors it records

    def __init__(self, run: Path, scores: ScoreHistory) -> None:
        self.run, self.scores = run, scores
        self._facts: dict[str, object] = {}

    def open(self, trainer: Trainer) -> None:
        if trainer.step:
            self.scores.add_file(self.run / "metrics.jsonl", trainer.step)
        self._facts = {**this_process(), "started": time.time(), "first_step": trainer.step}
        self._write(State.running)

    def write(self, record: Record) -> None:
        if "loss" not in record:
            self.scores.add(record)
            self._write(State.running)

    def close(self) -> None: ...

    def after_train(self, trainer: Trainer) -> None:
        self._write(State.finished if trainer.is_done else State.stopped)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._write(State.stopped)
        else:
            self._write(State.failed, str(error).partition("\n")[0] or type(error).__name__)

    def _write(self, state: State, error: str | None = None) -> None:
        if not self._facts:  # not the main process, or nothing has started
            return
        status = {"state": state.value, "error": error, **self._facts, "scores": asdict(self.scores)}
        write_atomic(self.run / STATUS_FILE, json.dumps(status, indent=1) + "\n")
