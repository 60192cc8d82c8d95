"""``metrics.csv``: a table with a row per record, for spreadsheets."""

import csv
import io

from ssl_zoo.engine.loggers.base import LOGGERS, LoggedRun, Logger, LoggerConfig, Record
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.io import write_atomic

_FIRST = ("step", "epoch")


@LOGGERS.register("csv", LoggerConfig)
class Csv(Logger):
    """One row per record in metrics.csv, with a column for each metric; other cells are empty."""

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        super().__init__(config, run)
        self.path = run.path / "metrics.csv"

    def open(self, trainer: Trainer) -> None:
        """Keep the rows up to the step that the run resumes from."""
        self._columns, kept = list(_FIRST), []
        if self.path.is_file() and trainer.step > 0:
            with open(self.path, newline="") as file:
                rows = csv.DictReader(file)
                self._columns = list(rows.fieldnames or _FIRST)
                # A row that was being written when the process died has fewer cells, which are None.
                complete = (row for row in rows if None not in row.values())
                kept = [row for row in complete if int(row["step"]) <= trainer.step]
        self._begin(kept)

    def write(self, record: Record) -> None:
        if new := [name for name in record if name not in self._columns]:
            self._file.close()
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._begin(rows)
        self._rows.writerow(record)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _begin(self, rows: list[dict[str, str]]) -> None:
        """Write the header and the rows so far, and open the file for further rows."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())
        self._file = open(self.path, "a", newline="")  # noqa: SIM115 (closed when the run ends)
        self._rows = csv.DictWriter(self._file, self._columns)
