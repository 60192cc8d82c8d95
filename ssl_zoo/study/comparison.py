"""The contents of a report: rows of runs that differ only in their seed, and statistics over them."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.config import Composed
from ssl_zoo.study.evaluation import PlannedEvaluation, plan_evaluations
from ssl_zoo.study.file import Study
from ssl_zoo.study.plan import Cost, PlannedRun, cost_of, identity
from ssl_zoo.study.record import RunFolder, RunRecord


@dataclass(frozen=True)
class Attempt:
    """One run of a row, with its progress.

    Attributes:
        record: None before the training has started.
        failure: error message of a failed run.
        num_steps: length of the complete run, if known.
        unevaluated: titles of evaluations that have not run on the trained network.
    """

    seed: int
    directory: Path
    record: RunRecord | None
    failure: str | None
    num_steps: int | None
    unevaluated: Sequence[str] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the training is complete."""
        return self.record is not None and self.record.is_finished(self.num_steps)

    @property
    def state(self) -> str:
        """Describe the progress for a table cell, without the error message of a failure."""
        if self.is_finished:
            return "finished"
        where = "not started"
        if self.record is not None:
            of = f" of {self.num_steps:,}" if self.num_steps else ""
            where = f"at step {self.record.step:,}{of}"
        return where if self.failure is None else f"failed, {where}"


@dataclass(frozen=True)
class Summary:
    """A mean over runs and the sample standard deviation, which is None for a single run."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Summary | None":
        """Summarize the values that are not None; return None if there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """A row holds the runs of one configuration with different seeds.

    Attributes:
        composed: the configuration with one of the seeds.
        published: the paper's values in percent, by column.
        series: the plot against compute joins the rows of a series by a line.
    """

    title: str
    attempts: Sequence[Attempt]
    composed: Composed
    cost: Cost
    published: Mapping[str, float]
    series: str = ""

    @property
    def counted(self) -> Sequence[Attempt]:
        """Return the finished runs, or all runs if none is finished."""
        return [attempt for attempt in self.attempts if attempt.is_finished] or self.attempts

    @property
    def records(self) -> Sequence[RunRecord]:
        """Return the records of the counted runs."""
        return [attempt.record for attempt in self.counted if attempt.record is not None]

    @property
    def is_finished(self) -> bool:
        return all(attempt.is_finished and not attempt.unevaluated for attempt in self.attempts)

    def score(self, column: str) -> Summary | None:
        return Summary.of(record.score(column) for record in self.records)

    def baselines(self, columns: Sequence[str]) -> dict[tuple[int, str], float]:
        """Return the scores of the networks before their first step, by seed and column."""
        return {
            (attempt.seed, column): score
            for attempt in self.counted
            for column in columns
            if attempt.record is not None and (score := attempt.record.baseline(column)) is not None
        }

    def flops(self, record: RunRecord) -> float:
        """Return the FLOPs that a run of this row has used so far."""
        return record.step * record.batch_size * self.cost.flops_per_image


@dataclass(frozen=True)
class Baseline:
    """Scores of networks before their first step."""

    title: str
    scores: Mapping[str, Summary | None]


@dataclass(frozen=True)
class Comparison:
    """The contents of a report; ``command`` reproduces it."""

    title: str
    question: str
    source: str
    published_as: str
    columns: Sequence[str]
    published_columns: Sequence[str]
    rows: Sequence[Row]
    command: str
    evaluations: Sequence[PlannedEvaluation] = ()
    metrics: Sequence[str] = ()

    @property
    def attempts(self) -> Sequence[tuple[Row, Attempt]]:
        return [(row, attempt) for row in self.rows for attempt in row.attempts]

    @property
    def baselines(self) -> Sequence[Baseline]:
        """Return one baseline per group of rows whose runs have equal initial scores for equal seeds."""
        columns = [*self.columns, *(column for planned in self.evaluations for column in planned.columns)]
        groups: list[tuple[list[str], dict[tuple[int, str], float]]] = []
        for row in self.rows:
            initial = row.baselines(columns)
            for titles, known in groups:
                if all(known.get(key, value) == value for key, value in initial.items()):
                    titles.append(row.title)
                    known |= initial
                    break
            else:
                groups.append(([row.title], initial))
        groups = [(titles, known) for titles, known in groups if known]
        return [
            Baseline(
                "random init" if len(groups) == 1 else f"random init of {', '.join(titles)}",
                {column: Summary.of(v for (_, name), v in known.items() if name == column) for column in columns},
            )
            for titles, known in groups
        ]


def compare_study(
    study: Study, runs: Sequence[PlannedRun], folder: RunFolder, failures: Mapping[str, str], command: str
) -> Comparison:
    """Build the comparison of a study from the current state of its runs.

    Args:
        failures: error messages of failed runs, by run identity.
    """
    rows, evaluations = [], plan_evaluations(study.evaluations)
    for name, entry in study.entries.items():
        own = [run for run in runs if run.entry == name]
        attempts = [_attempt(run, folder, failures.get(run.identity), evaluations) for run in own]
        rows.append(Row(entry.title or name, attempts, own[0].composed, own[0].cost, entry.published, entry.series))
    return Comparison(
        study.title,
        study.question,
        study.source,
        study.published_as,
        study.columns,
        study.published_columns,
        rows,
        command,
        evaluations,
        study.metrics,
    )


def _attempt(
    run: PlannedRun, folder: RunFolder, failure: str | None, evaluations: Sequence[PlannedEvaluation]
) -> Attempt:
    record = folder.find(run.identity)
    directory = folder.path / run.directory if record is None else record.path
    unevaluated = [evaluation.title for evaluation in evaluations if not evaluation.is_done(directory)]
    return Attempt(run.seed, directory, record, failure, run.cost.num_steps, unevaluated)


def compare_runs(paths: Sequence[Path], command: str) -> Comparison:
    """Build a comparison of run directories; runs whose configurations differ only in the seed share a row.

    Raises:
        ValueError: one of the paths is not a run directory, or is given twice.
    """
    records = [RunRecord.read(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{' '.join(map(str, paths))}: a run directory is given twice")
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(identity(record.composed, with_seed=False), []).append(record)
    parent = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    rows = [_row_of(group, parent) for group in groups.values()]
    columns = list(dict.fromkeys(name for record in records for name in record.score_names))
    question = "Runs whose configurations differ only in the seed share a row, which is named after the first of them."
    title = f"{len(rows)} configurations, {len(records)} runs"
    return Comparison(title, question, "", "", columns, (), rows, command)


def _row_of(records: Sequence[RunRecord], parent: Path) -> Row:
    first = records[0]
    cost = cost_of(first.composed)
    attempts = [
        Attempt(record.composed.config.seed, record.path, record, None, record.num_steps or cost.num_steps)
        for record in records
    ]
    return Row(str(first.path.resolve().relative_to(parent)), attempts, first.composed, cost, {})
