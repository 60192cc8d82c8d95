"""A study at work: what is there, what is missing, and the training of the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.table import Table

from ssl_zoo.config.keys import ConfigError
from ssl_zoo.study.comparison import Comparison, compare_study
from ssl_zoo.study.evaluation import PlannedEvaluation, plan_evaluations
from ssl_zoo.study.file import Study, read_study
from ssl_zoo.study.plan import PlannedRun, plan_runs
from ssl_zoo.study.record import RunFolder
from ssl_zoo.study.report import duration, quantity, report
from ssl_zoo.study.training import Ended, Start, train_all


@dataclass
class StudyWork:
    """The runs of a study and where they lie.

    Attributes:
        runs_folder: runs of all studies of one place, so that equal ones are trained once.
        folder: of the report.
        command: what the report names to make it again.
        failures: identity of a run -> what it failed with; of this process alone, since the next one tries again.
    """

    study: Study
    runs: Sequence[PlannedRun]
    runs_folder: RunFolder
    folder: Path
    command: str
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, out: Path, overrides: Sequence[str], seeds: str | None, command: str) -> "StudyWork":
        """A study file at work in ``out``.

        Args:
            seeds: instead of the study's, as ``0,1,2``.

        Raises:
            ConfigError: whatever is wrong with the study, its recipes or the overrides.
        """
        study = read_study(path)
        if seeds is not None:
            try:
                study = replace(study, seeds=[int(seed) for seed in seeds.split(",")])
            except ValueError as error:
                raise ConfigError(f"--seeds {seeds}: expected whole numbers, none twice, e.g. 0,1,2") from error
        return cls(study, plan_runs(study, overrides), RunFolder(out / "runs"), out / path.stem, command)

    def is_trained(self, run: PlannedRun) -> bool:
        record = self.runs_folder.find(run.identity)
        return record is not None and record.is_finished(run.cost.num_steps)

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether a run is trained and evaluated."""
        return self.is_trained(run) and not self.unevaluated(run)

    def unevaluated(self, run: PlannedRun) -> list[str]:
        """Names of the evaluations that a run lacks."""
        record = self.runs_folder.find(run.identity)
        folder = self.runs_folder.path / run.directory if record is None else record.path
        return [evaluation.name for evaluation in self.evaluations if not evaluation.is_done(folder)]

    @property
    def evaluations(self) -> Sequence[PlannedEvaluation]:
        return plan_evaluations(self.study.evaluations)

    @property
    def missing(self) -> list[PlannedRun]:
        """Runs that are not finished, of equal ones the first."""
        first = {run.identity: run for run in reversed(self.runs)}
        return [run for run in self.runs if first[run.identity] is run and not self.is_finished(run)]

    def comparison(self) -> Comparison:
        return compare_study(self.study, self.runs, self.runs_folder, self.failures, self.command)

    def train(self, start: Start, jobs: int, plugins: Sequence[str], tell: Callable[[str], None]) -> bool:
        """Train what is missing, with a report after each run but the last; False if a signal ended it before."""
        missing = self.missing
        if not missing:
            tell(f"nothing to compute: all {len(self.runs)} runs are finished")
            return True
        untrained = sum(not self.is_trained(run) for run in missing)
        evaluated = f", {len(missing)} to be evaluated" if self.evaluations else ""
        tell(f"{untrained} of {len(self.runs)} runs are to be trained{evaluated}")
        left = len(missing)

        def after_each(ended: Ended) -> None:
            nonlocal left
            left -= 1
            if ended.failure is not None:
                self.failures[ended.run.identity] = ended.failure
                tell(f"{ended.run.title} failed: {ended.failure}")
            elif self.is_finished(ended.run):
                tell(f"{ended.run.title} finished after {duration(ended.seconds)}")
            else:
                tell(f"{ended.run.title} stopped; it can go on")
                return
            if left:  # the last report is the caller's
                report(self.comparison(), self.folder).write(self.folder)

        return train_all(
            missing,
            self.runs_folder,
            start,
            jobs=jobs,
            evaluations=self.evaluations,
            plugins=plugins,
            tell=tell,
            after_each=after_each,
        )


def schedule(work: StudyWork) -> Table:
    """What would be trained, with its cost."""
    missing = {run.identity for run in work.missing}
    table = Table("run", "state", "images", "compute", title=work.study.title, title_justify="left")
    images, flops = 0, 0.0
    seen: set[str] = set()
    for run in work.runs:
        record = work.runs_folder.find(run.identity)
        done = 0 if record is None else record.step * record.batch_size
        left = None if run.cost.images is None else run.cost.images - done
        state = "to train" if not done else f"goes on from step {record.step:,}"
        if run.identity in seen:
            left, state = 0, "same as one above"
        elif run.identity not in missing:
            left, state = 0, f"finished: {record.path.name}"
        elif work.is_trained(run):
            left, state = 0, f"to be evaluated ({', '.join(work.unevaluated(run))}): {record.path.name}"
        seen.add(run.identity)
        cost = None if left is None else left * run.cost.flops_per_image
        images, flops = images + (left or 0), flops + (cost or 0.0)
        table.add_row(run.title, state, "unknown" if left is None else f"{left:,}", quantity(cost))
    table.add_section()
    untrained = {run.identity for run in work.missing if not work.is_trained(run)}
    evaluated = f", {len(missing)} to evaluate" if work.evaluations else ""
    table.add_row("all", f"{len(untrained)} to train{evaluated}", f"{images:,}", quantity(flops))
    return table
