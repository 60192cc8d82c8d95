"""``metrics.jsonl``: one JSON object per record."""

import json

from ssl_zoo.engine.loggers.base import LOGGERS, LoggedRun, Logger, LoggerConfig, Record
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.io import write_atomic


@LOGGERS.register("jsonl", LoggerConfig)
class JsonLines(Logger):
    """One JSON object per record in metrics.jsonl, which studies, reports and tools/status.py read."""

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        super().__init__(config, run)
        self.path = run.path / "metrics.jsonl"

    def open(self, trainer: Trainer) -> None:
        """Keep the records up to the step that the run resumes from."""
        kept = []
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the process died
                if 0 < trainer.step >= record["step"]:
                    kept.append(line + "\n")
        write_atomic(self.path, "".join(kept))
        self._file = open(self.path, "a")  # noqa: SIM115 (closed when the run ends)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
