"""What a report is made of: rows of runs that differ in their seed alone, and statistics over them."""

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
    """One run of a row, as far as it came.

    Attributes:
        record: None where nothing was trained.
        failure: what it failed with, if it did.
        num_steps: of the whole run, where that is known.
        unevaluated: titles of evaluations that the trained network still lacks.
    """

    seed: int
    directory: Path
    record: RunRecord | None
    failure: str | None
    num_steps: int | None
    unevaluated: Sequence[str] = ()

    @property
    def is_finished(self) -> bool:
        """Whether it is trained to its end."""
        return self.record is not None and self.record.is_finished(self.num_steps)

    @property
    def state(self) -> str:
        """In words; of a failure only that it is one."""
        if self.is_finished:
            return "finished"
        where = "not started"
        if self.record is not None:
            of = f" of {self.num_steps:,}" if self.num_steps else ""
            where = f"at step {self.record.step:,}{of}"
        return where if self.failure is None else f"failed, {where}"


@dataclass(frozen=True)
class Summary:
    """A mean over runs with the sample standard deviation, None of one run."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Summary | None":
        """Over the values that are there; None without any."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """Runs of one configuration with different seeds.

    Attributes:
        composed: the configuration with one of the seeds.
        published: values of the paper in percent, by column.
        series: rows of one series are joined in the plot against compute.
    """

    title: str
    attempts: Sequence[Attempt]
    composed: Composed
    cost: Cost
    published: Mapping[str, float]
    series: str = ""

    @property
    def counted(self) -> Sequence[Attempt]:
        """The finished runs; where there is none, all."""
        return [attempt for attempt in self.attempts if attempt.is_finished] or self.attempts

    @property
    def records(self) -> Sequence[RunRecord]:
        """Of the counted runs."""
        return [attempt.record for attempt in self.counted if attempt.record is not None]

    @property
    def is_finished(self) -> bool:
        return all(attempt.is_finished and not attempt.unevaluated for attempt in self.attempts)

    def score(self, column: str) -> Summary | None:
        return Summary.of(record.score(column) for record in self.records)

    def baselines(self, columns: Sequence[str]) -> dict[tuple[int, str], float]:
        """Scores of the networks before their first step, by seed and column."""
        return {
            (attempt.seed, column): score
            for attempt in self.counted
            for column in columns
            if attempt.record is not None and (score := attempt.record.baseline(column)) is not None
        }

    def flops(self, record: RunRecord) -> float:
        """That a run of this row has taken so far."""
        return record.step * record.batch_size * self.cost.flops_per_image


@dataclass(frozen=True)
class Baseline:
    """A score of networks before their first step."""

    title: str
    scores: Mapping[str, Summary | None]


@dataclass(frozen=True)
class FurtherScores:
    """A table of scores by an evaluation of the finished runs, which changes their configurations by ``overrides``."""

    title: str
    columns: Sequence[str]
    overrides: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report tells; ``command`` makes it again."""

    title: str
    question: str
    source: str
    published_as: str
    columns: Sequence[str]
    published_columns: Sequence[str]
    rows: Sequence[Row]
    command: str
    further: Sequence[FurtherScores] = ()

    @property
    def attempts(self) -> Sequence[tuple[Row, Attempt]]:
        return [(row, attempt) for row in self.rows for attempt in row.attempts]

    @property
    def baselines(self) -> Sequence[Baseline]:
        """One for all rows whose networks start alike: no two of their runs of one seed have another score at first."""
        columns = [*self.columns, *(column for table in self.further for column in table.columns)]
        groups: list[tuple[list[str], dict[tuple[int, str], float]]] = []
        for row in self.rows:
            at_start = row.baselines(columns)
            for titles, known in groups:
                if all(known.get(key, value) == value for key, value in at_start.items()):
                    titles.append(row.title)
                    known |= at_start
                    break
            else:
                groups.append(([row.title], at_start))
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
    """The comparison of a study as its runs stand.

    Args:
        failures: identity of a run -> what it failed with.
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
        [FurtherScores(e.title, e.columns, e.evaluation.overrides) for e in evaluations],
    )


def _attempt(
    run: PlannedRun, folder: RunFolder, failure: str | None, evaluations: Sequence[PlannedEvaluation]
) -> Attempt:
    record = folder.find(run.identity)
    directory = folder.path / run.directory if record is None else record.path
    unevaluated = [evaluation.title for evaluation in evaluations if not evaluation.is_done(directory)]
    return Attempt(run.seed, directory, record, failure, run.cost.num_steps, unevaluated)


def compare_runs(paths: Sequence[Path], command: str) -> Comparison:
    """The comparison of run directories; those whose configurations differ in the seed alone share a row.

    Raises:
        ValueError: one of them is no run directory, or given twice.
    """
    records = [RunRecord.read(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{' '.join(map(str, paths))}: a run directory is named twice")
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(identity(record.composed, with_seed=False), []).append(record)
    above = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    rows = [_row_of(group, above) for group in groups.values()]
    columns = list(dict.fromkeys(name for record in records for name in record.score_names))
    question = "Runs whose configurations differ in their seed alone share a row, which has the name of the first."
    title = f"{len(rows)} configurations, {len(records)} runs"
    return Comparison(title, question, "", "", columns, (), rows, command)


def _row_of(records: Sequence[RunRecord], above: Path) -> Row:
    first = records[0]
    cost = cost_of(first.composed)
    attempts = [
        Attempt(record.composed.config.seed, record.path, record, None, record.num_steps or cost.num_steps)
        for record in records
    ]
    return Row(str(first.path.resolve().relative_to(above)), attempts, first.composed, cost, {})
