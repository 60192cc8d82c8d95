"""Training of a recipe: what ``tools/train_net.py`` and ``ssl_zoo.train`` do."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_zoo.api.encoder import Encoder
from ssl_zoo.api.loading import load
from ssl_zoo.api.overrides import Overrides, as_words
from ssl_zoo.api.probe_checkpoints import ProbeCheckpoints
from ssl_zoo.config import Composed, Config, compose, recipe_text
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.data.sources import Splits, build_splits
from ssl_zoo.data.summary import classes_of_one_split, similar_classes, summary
from ssl_zoo.engine import hooks
from ssl_zoo.engine.alarm import CollapseAlarm
from ssl_zoo.engine.build import build_data, build_run_method
from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.engine.data_record import data_record, require_same_data, write_record
from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.loggers import LOGGERS, LoggedRun, Tags, build_loggers
from ssl_zoo.engine.metrics import Metrics
from ssl_zoo.engine.precision import recorded_precision, run_precision
from ssl_zoo.engine.progress import ProgressBar
from ssl_zoo.engine.report import report
from ssl_zoo.engine.run_directory import RunDirectory, environment, flatten
from ssl_zoo.engine.status import ScoreHistory
from ssl_zoo.engine.status_file import StatusFile
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.eval.probe import Probe
from ssl_zoo.interop.start import described, plan_start, start_from
from ssl_zoo.method import Method
from ssl_zoo.scores import Score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run after a call of ``ssl_zoo.train``.

    Attributes:
        path: the run directory.
        step: optimizer steps that were trained.
        num_steps: steps of the complete run.
        scores: the latest scores of the probe, by name.
    """

    path: Path
    step: int
    num_steps: int
    scores: Mapping[str, Score]

    @property
    def is_finished(self) -> bool:
        """Whether the last step was trained. A signal or the collapse alarm can stop a run before."""
        return self.step >= self.num_steps

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``: losses, learning rate, speed and scores by step."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def encoder(self, **options: Any) -> Encoder:
        """Load the run's encoder; options as for ``ssl_zoo.load``."""
        return load(self.path, **options)


def train(
    recipe: str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    resume: str = "auto",
    accept_changed_data: bool = False,
    verbose: bool = True,
) -> Run:
    """Train a recipe, or resume it, as ``tools/train_net.py`` does.

    Ctrl-C, or an interrupt of a notebook's kernel, saves after the current step and returns. The same call resumes.

    Args:
        recipe: path of a YAML file.
        overrides: ``["trainer.epochs=10", "method=mae"]``, or ``{"trainer.epochs": 10, "method": "mae"}``.
        resume: ``auto`` resumes from the newest checkpoint in ``output_dir``, ``never`` refuses one, anything else is
            the path of a checkpoint.
        accept_changed_data: resume although images or classes have changed since the run started.
        verbose: show progress and the summary on the terminal.

    Raises:
        ValueError: the recipe, an override, the data or a checkpoint is wrong.
        NonFiniteLoss: the loss is not finite; the batch is saved.
        Collapse: the collapse alarm stopped the run; its policy is ``monitor.alarm.policy``.
    """
    words = as_words(overrides)
    composed = compose(recipe, words)
    trainer = composed.config.trainer
    with processes(trainer.device, trainer.parallel, trainer.timeout_minutes) as ranks:
        return train_composed(
            composed,
            resume,
            Console(soft_wrap=True, quiet=not verbose),
            ranks,
            must_evaluate=names_evaluators(words),
            accept_changed_data=accept_changed_data,
        )


def names_evaluators(overrides: Sequence[str]) -> bool:
    """Return whether overrides choose the evaluators; those must be able to run, those of a recipe may be left out."""
    return any(override.partition("=")[0] == "probe.evaluators" for override in overrides)


def train_composed(
    composed: Composed,
    resume: str,
    console: Console,
    ranks: Processes,
    *,
    must_evaluate: bool = False,
    accept_changed_data: bool = False,
) -> Run:
    """Train a composed recipe in the given processes; the errors are those of ``train``.

    Args:
        must_evaluate: raise an error where an evaluator can't run on the data, instead of leaving it out.
    """
    config = composed.config
    for name in config.monitor.loggers:
        LOGGERS.get(name)  # before the data is read
    chosen = {"choices": dict(composed.choices), **composed.plain()}
    run = RunDirectory(Path(config.output_dir), chosen, composed.plain_defaults())
    checkpoint = run.find_checkpoint(resume)
    method = build_run_method(config)
    if checkpoint is not None:
        start = run.recorded("init_from", checkpoint)  # its weights are in the checkpoint
    else:
        start = start_from(method, config.backbone.init_from) if config.backbone.init_from else None
    splits = build_splits(config.data, config.backbone.in_channels)
    _log_data(splits)
    data = build_data(config, ranks, splits.train)
    recorded = None if checkpoint is None else recorded_precision(checkpoint)
    choice = run_precision(method, config.trainer, ranks, recorded)
    precision = autocast(choice.precision, ranks.device)
    probe = _probe(config, splits, data, ranks, precision, must_evaluate, run.unfinished_probe)
    if checkpoint is not None and not accept_changed_data:
        require_same_data(checkpoint, splits, is_evaluated=bool(probe.evaluators))
    loggers = build_loggers(config.monitor, _logged_run(run, composed, method, probe)) if ranks.is_main else []
    scores = ScoreHistory()
    status = StatusFile(run.path, scores)
    progress = ProgressBar(console, config.monitor.progress_bar, scores, config.probe if probe.evaluators else None)
    writers = [*loggers, status, progress]
    alarm = CollapseAlarm(config.monitor.alarm)
    metrics = Metrics(config.monitor.log_every, writers if ranks.is_main else [], alarm)
    corrupt_samples = hooks.CorruptSamples(run.corrupt_samples, config.loader.max_corrupt_fraction)
    evaluation = hooks.Evaluation(probe, metrics, config.probe, corrupt_samples)
    manifest = {"method": composed.choices["method"], "config": run.config, "precision": choice.precision.value}
    manifest["data"] = data_record(splits)
    checkpointer = hooks.Checkpointer(run.path, config.trainer, manifest)
    observers = [
        hooks.StopOnSignal(),
        hooks.OffendingStep(run.path),
        corrupt_samples,
        metrics,
        alarm,
        evaluation,
        hooks.Visualizations(run.figures, config.monitor.images_every, loggers),
        checkpointer,
        status,
    ]
    settings = {"optim": config.optim, "config": config.trainer, "seed": config.seed, "precision": choice.precision}
    trainer = Trainer(method, data, ranks, hooks=observers, **settings)
    if checkpoint is not None:
        checkpointer.resume(trainer, checkpoint)
    if ranks.is_main:
        if checkpoint is not None:
            run.set_aside_after(checkpoint)
        length = {"num_steps": trainer.num_steps, "batch_size": config.trainer.batch_size}
        origin = {} if start is None else {"init_from": start}
        run.write_start(recipe_text(composed), {**environment(ranks, choice), **length, **origin})
        write_record(run.path, splits)
    trainer.train()
    if ranks.is_main:
        report(console, run, trainer, evaluation)
    return Run(run.path, trainer.step, trainer.num_steps, {score.name: score for score in evaluation.scores})


def planned_start(composed: Composed, resume: str = "auto") -> str | None:
    """Return in a line what a run would load by ``backbone.init_from``, with the checks of a real start.

    Returns:
        None where the run would load nothing: the key is not set, or it resumes from a checkpoint.

    Raises:
        InitError: nothing usable at the path, or an encoder that does not fit.
    """
    config = composed.config
    resumes = resume not in ("auto", "never") or (resume == "auto" and list_checkpoints(Path(config.output_dir)))
    if config.backbone.init_from is None or resumes:
        return None
    return described(plan_start(build_run_method(config, device="meta"), config.backbone.init_from).record)


def _probe(
    config: Config,
    splits: Splits,
    data: TrainingData,
    ranks: Processes,
    precision: AbstractContextManager,
    must_evaluate: bool,
    unfinished: Path,
) -> Probe:
    """Build the probe of a run, and log which evaluators it leaves out.

    Args:
        unfinished: where trainings of the probe are saved, which a run that is killed meanwhile resumes.
    """
    probe = Probe(
        config,
        splits.train,
        splits.test,
        data.views[0],
        is_optional=not must_evaluate,
        without_test=splits.without_test,
        device=ranks.device,
        autocast=precision,
        loader=config.loader,
        checkpoints=ProbeCheckpoints(unfinished, ranks),
    )
    if (explanation := probe.explanation()) and ranks.is_main:
        log.warning("evaluation: %s", explanation)
    return probe


def _logged_run(run: RunDirectory, composed: Composed, method: Method, probe: Probe) -> LoggedRun:
    values = {**composed.choices, **flatten(composed.plain())}
    tags = Tags.of(method, probe.metric_groups)
    return LoggedRun(run.path, recipe_text(composed), values, shlex.join(sys.orig_argv), tags)


def _log_data(splits: Splits) -> None:
    log.info("data: %s", summary(splits))
    if one_sided := classes_of_one_split(splits):
        log.info("classes: %s; both splits are numbered together", one_sided)
    if similar := similar_classes(splits.train):
        log.info(similar)
