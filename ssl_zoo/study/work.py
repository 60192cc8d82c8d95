"""Run a study: find its finished runs, train and evaluate the missing ones, write the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.table import Table

from ssl_zoo.config.keys import ConfigError
from ssl_zoo.engine.build import build_run_method
from ssl_zoo.interop.start import described, plan_start
from ssl_zoo.study.comparison import Comparison, compare_study
from ssl_zoo.study.evaluation import PlannedEvaluation, plan_evaluations
from ssl_zoo.study.file import Study, read_study
from ssl_zoo.study.plan import PlannedRun, plan_runs
from ssl_zoo.study.record import RunFolder
from ssl_zoo.study.report import duration, quantity, report
from ssl_zoo.study.training import Outcome, Queue, Start


@dataclass
class StudyWork:
    """The runs of a study and their folders.

    Attributes:
        runs_folder: shared by all studies with the same ``--out``, so that equal runs are trained once.
        folder: folder of the report.
        command: command that reproduces the report.
        failures: error messages by run identity, of this process only, since the next one retries.
    """

    study: Study
    runs: Sequence[PlannedRun]
    runs_folder: RunFolder
    folder: Path
    command: str
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, out: Path, overrides: Sequence[str], seeds: str | None, command: str) -> "StudyWork":
        """Read a study file and plan its runs in ``out``.

        Args:
            seeds: replaces the study's seeds, e.g. ``0,1,2``.

        Raises:
            ConfigError: the study, a recipe or an override has an error.
        """
        study = read_study(path)
        if seeds is not None:
            try:
                study = replace(study, seeds=[int(seed) for seed in seeds.split(",")])
            except ValueError as error:
                raise ConfigError(f"--seeds {seeds}: expected integers without duplicates, e.g. 0,1,2") from error
        return cls(study, plan_runs(study, overrides), RunFolder(out / "runs"), out / path.stem, command)

    def is_trained(self, run: PlannedRun) -> bool:
        record = self.runs_folder.find(run.identity)
        return record is not None and record.is_finished(run.cost.num_steps)

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether a run is trained and evaluated."""
        return self.is_trained(run) and not self.unevaluated(run)

    def unevaluated(self, run: PlannedRun) -> list[str]:
        """Return the names of the evaluations that a run lacks."""
        record = self.runs_folder.find(run.identity)
        folder = self.runs_folder.path / run.directory if record is None else record.path
        return [evaluation.name for evaluation in self.evaluations if not evaluation.is_done(folder)]

    @property
    def evaluations(self) -> Sequence[PlannedEvaluation]:
        return plan_evaluations(self.study.evaluations)

    @property
    def missing(self) -> list[PlannedRun]:
        """Return the unfinished runs, and of equal runs only the first."""
        first = {run.identity: run for run in reversed(self.runs)}
        return [run for run in self.runs if first[run.identity] is run and not self.is_finished(run)]

    def starts(self) -> list[str]:
        """Return what the runs that begin load by ``backbone.init_from``, in a line per entry.

        Raises:
            ConfigError: what an entry starts from is missing or does not fit; the message is that of the training.
        """
        first: dict[str, PlannedRun] = {}
        for run in self.missing:
            record = self.runs_folder.find(run.identity)
            if run.composed.config.backbone.init_from and not (record and record.step):
                first.setdefault(run.entry, run)
        lines = []
        for entry, run in first.items():
            config = run.composed.config
            try:
                start = plan_start(build_run_method(config, device="meta"), config.backbone.init_from)
            except ValueError as error:
                raise ConfigError(f"entry {entry}: {error}") from error
            lines.append(f"{entry}: {described(start.record)}")
        return lines

    def comparison(self) -> Comparison:
        return compare_study(self.study, self.runs, self.runs_folder, self.failures, self.command)

    def train(self, start: Start, jobs: int, plugins: Sequence[str], log: Callable[[str], None]) -> bool:
        """Train the missing runs and write a report after each except the last; False if a signal stopped it."""
        missing = self.missing
        if not missing:
            log(f"nothing to compute: all {len(self.runs)} runs are finished")
            return True
        for line in self.starts():
            log(line)
        untrained = sum(not self.is_trained(run) for run in missing)
        evaluated = f", {len(missing)} to evaluate" if self.evaluations else ""
        log(f"{untrained} of {len(self.runs)} runs to train{evaluated}")
        left = len(missing)

        def after_each(outcome: Outcome) -> None:
            nonlocal left
            left -= 1
            if outcome.failure is not None:
                self.failures[outcome.run.identity] = outcome.failure
                log(f"{outcome.run.title} failed: {outcome.failure}")
            elif self.is_finished(outcome.run):
                log(f"{outcome.run.title} finished after {duration(outcome.seconds)}")
            else:
                log(f"{outcome.run.title} stopped; it can resume")
                return
            if left:  # the caller writes the last report
                report(self.comparison(), self.folder).write(self.folder)

        return Queue(
            folder=self.runs_folder,
            start=start,
            jobs=jobs,
            evaluations=self.evaluations,
            plugins=plugins,
            log=log,
            after_each=after_each,
            waiting=missing,
        ).work()


def run_table(work: StudyWork) -> Table:
    """Return a table of the runs, their state and the cost of what is missing."""
    missing = {run.identity for run in work.missing}
    table = Table("run", "state", "images", "compute", title=work.study.title, title_justify="left")
    images, flops = 0, 0.0
    seen: set[str] = set()
    for run in work.runs:
        record = work.runs_folder.find(run.identity)
        done = 0 if record is None else record.step * record.batch_size
        left = None if run.cost.images is None else run.cost.images - done
        state = "to train" if not done else f"resumes from step {record.step:,}"
        if run.identity in seen:
            left, state = 0, "equal to a run above"
        elif run.identity not in missing:
            left, state = 0, f"finished: {record.path.name}"
        elif work.is_trained(run):
            left, state = 0, f"to evaluate ({', '.join(work.unevaluated(run))}): {record.path.name}"
        seen.add(run.identity)
        cost = None if left is None else left * run.cost.flops_per_image
        images, flops = images + (left or 0), flops + (cost or 0.0)
        table.add_row(run.title, state, "unknown" if left is None else f"{left:,}", quantity(cost))
    table.add_section()
    untrained = {run.identity for run in work.missing if not work.is_trained(run)}
    evaluated = f", {len(missing)} to evaluate" if work.evaluations else ""
    table.add_row("all", f"{len(untrained)} to train{evaluated}", f"{images:,}", quantity(flops))
    return table
