"""Hooks: they observe a run, save it, stop it and visualize it; none holds a part of the algorithm."""

import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from ssl_zoo.data.batch import Corrupt
from ssl_zoo.data.captions import caption
from ssl_zoo.data.names import printable
from ssl_zoo.engine.checkpoint.saver import Saver
from ssl_zoo.engine.checkpoint.state import Checkpoint, CheckpointError, restore
from ssl_zoo.engine.loggers import Logger
from ssl_zoo.engine.metrics import Metrics
from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.engine.sharding import full_copy, is_sharded, reshard
from ssl_zoo.engine.step_file import StepFile
from ssl_zoo.engine.trainer import Hook, NonFiniteLoss, StepResult, Trainer
from ssl_zoo.engine.visualize import draw_all, save_images
from ssl_zoo.method import Progress, Step
from ssl_zoo.nn import ViT
from ssl_zoo.scores import BASELINE_SUFFIX, Score
from ssl_zoo.seeding import seed_for

log = logging.getLogger(__name__)

_MAX_CORRUPT_FRACTION, _FEW_CORRUPT = 0.01, 100


class StopOnSignal(Hook):
    """Ends the run after the current step, on all ranks at the same one, when any rank gets a signal to stop.

    Python handles signals in its main thread only; a run in another thread leaves them to the program.
    """

    name = "stop_on_signal"
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def before_train(self, trainer: Trainer) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = self.signals if in_main_thread else ()
        self._previous = {number: signal.signal(number, self._remember) for number in signals}

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.processes.any(self.received is not None):
            trainer.stop = True

    def after_train(self, trainer: Trainer) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._restore()

    def _remember(self, number: int, frame: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self.received = signal.Signals(number)
        log.warning("%s: saving after this step, then stopping", self.received.name)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Checkpointer(Hook):
    """Saves at intervals, at the end and when the run is stopped; keeps the newest few and those asked for.

    Args:
        manifest: written into every checkpoint beside its step: method name, config, environment.
    """

    name = "checkpointer"
    follows = ("metrics", "collapse_alarm", "evaluation", "corrupt_samples")  # whose states and stops it saves

    def __init__(self, run: Path, config: TrainerConfig, manifest: Mapping[str, Any]) -> None:
        self.run, self.config, self.manifest = run, config, manifest
        self.saver: Saver | None = None

    def before_train(self, trainer: Trainer) -> None:
        self.saver = Saver(
            self.run,
            trainer.processes,
            keep=self.config.keep_checkpoints,
            keep_every=self.config.keep_every,
            in_background=self.config.async_checkpoints,
        )

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        is_last = trainer.is_done or trainer.stop
        if trainer.step % self.config.checkpoint_every == 0 or is_last:
            trainer.raise_if_not_finite()
            hooks = {hook.name: hook.state_dict() for hook in trainer.hooks}
            self.saver.save(trainer.step, trainer.method, trainer.optimization.optimizer, hooks, self.manifest)
        if is_last:
            self.saver.wait()  # while a further signal still does nothing

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if self.saver is None:
            return
        try:
            self.saver.wait()
        except (CheckpointError, RuntimeError) as other:  # it is in the log; what ends the run is the first error
            log.debug("%s", other)

    def resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: networks, EMA weights, optimizer, hooks and step."""
        restore(checkpoint, trainer.method, trainer.optimization.optimizer)
        for hook in trainer.hooks:
            if hook.name in checkpoint.hooks:
                hook.load_state_dict(checkpoint.hooks[hook.name])
        trainer.step = checkpoint.step


class CorruptSamples(Hook):
    """Names and counts samples that could not be read; stops the run when they are too many.

    Args:
        report: a file that gets one line per sample, when it is first met.
        max_fraction: of all samples consumed, of which one may be corrupt in any case. None means 0.01, and permits a
            hundred in an epoch, so that a few bad files do not end a run on a small data set.
    """

    name = "corrupt_samples"

    def __init__(self, report: Path, max_fraction: float | None) -> None:
        self.report, self.max_fraction, self.count = report, max_fraction, 0
        self._known: set[str] = set()
        self._read_bytes = 0

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if not result.batch.corrupt:
            return
        self.note(f"step {trainer.step}", result.batch.corrupt, "another took its place")
        self.count += len(result.batch.corrupt)
        consumed = trainer.step * trainer.plan.batch_size / trainer.processes.world_size
        if self.count > self._limit(consumed, len(trainer.data.source) / trainer.processes.world_size):
            fraction = _MAX_CORRUPT_FRACTION if self.max_fraction is None else self.max_fraction
            raise ValueError(
                f"{self.count} of {consumed:.0f} samples read by this rank were unreadable, more than "
                f"loader.max_corrupt_fraction={fraction}; they are named in {self.report}. Repair them, or raise "
                "loader.max_corrupt_fraction"
            )

    def note(self, when: str, samples: Sequence[Corrupt], consequence: str) -> None:
        """Log samples and append them to the report, unless they are in it already."""
        if all(printable(sample.name) in self._known for sample in samples):
            return
        with open(self.report, "a+") as file:
            file.seek(self._read_bytes)  # what an earlier start of the run or another rank has written since
            self._known |= {line.split("\t")[1] for line in file if line.count("\t") > 1}
            for sample in samples:
                name, reason = printable(sample.name), printable(sample.reason)
                if name not in self._known:
                    self._known.add(name)
                    file.write(f"{when}\t{name}\t{reason}\n")
                    log.warning("unreadable sample %s: %s; %s", name, reason, consequence)
            self._read_bytes = file.tell()

    def _limit(self, consumed: float, epoch: float) -> float:
        if self.max_fraction is not None:
            return max(1.0, self.max_fraction * consumed)
        return max(_FEW_CORRUPT * max(1.0, consumed / epoch), _MAX_CORRUPT_FRACTION * consumed)

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(state["count"])


class OffendingStep(Hook):
    """Saves everything that a step with a non-finite loss or gradient saw, rebuilt from its number."""

    name = "offending_step"

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if not isinstance(error, NonFiniteLoss):
            return
        rank = trainer.processes.rank
        path = self.run / f"non_finite_step_{error.step + 1:08d}_rank_{rank}.safetensors"
        progress = Progress(
            error.step, trainer.num_steps, error.step * trainer.plan.batch_size, trainer.steps_per_epoch
        )
        seed = seed_for(trainer.seed, "forward", error.step, rank)
        StepFile(trainer.data.batch(error.step), Step.of(trainer.method, progress), seed).write(path)
        log.error("%s; what it saw (images, masks, sample ids, scheduled values) is in %s", error, path)


class Visualizations(Hook):
    """Saves the method's figures of a few images as PNG files and hands them to the loggers.

    All ranks compute them, since networks may be sharded; otherwise they would only wait for the next step.
    """

    name = "visualizations"
    follows = ("metrics",)  # which opens the loggers

    def __init__(self, folder: Path, every: int, loggers: Sequence[Logger] = (), num_images: int = 6) -> None:
        self.folder, self.every, self.loggers, self.num_images = folder, every, loggers, num_images

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        due = self.every and (trainer.step == 1 or trainer.is_done or trainer.step % self.every == 0)
        if not due:
            return
        with torch.no_grad():
            shown = result.batch.rows(slice(0, self.num_images))
            figures = trainer.method.visualize(shown)
        reshard(trainer.method)
        if not trainer.processes.is_main:
            return
        images = draw_all(figures, [caption(trainer.data.source, index) for index in shown.index.tolist()])
        save_images(images, self.folder, trainer.step)
        for name, image in images.items():
            for logger in self.loggers:
                logger.image(name, image, trainer.step)


class Evaluate(Protocol):
    """What the evaluation hook calls, on every rank, with the method's evaluated encoder."""

    corrupt: Sequence[Corrupt]  # images that could not be decoded

    def __call__(self, encoder: ViT, *, step: int) -> Sequence[Score]:
        """Score the encoder."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class EvaluationTimes(Protocol):
    """When to evaluate; ``every_steps`` 0 leaves out the times in between."""

    every_steps: int
    at_start: bool
    at_end: bool


class Evaluation(Hook):
    """Evaluates before the first step, at intervals and after the last one.

    Args:
        corrupt_samples: the hook that reports images that could not be decoded.

    Attributes:
        scores: the latest ones.
    """

    name = "evaluation"
    follows = ("metrics",)  # which opens the writers

    def __init__(
        self,
        evaluate: Evaluate,
        metrics: Metrics,
        timing: EvaluationTimes,
        corrupt_samples: CorruptSamples | None = None,
    ) -> None:
        self.evaluate, self.metrics, self.timing = evaluate, metrics, timing
        self.corrupt_samples = corrupt_samples
        self.scores: Sequence[Score] = ()

    def before_train(self, trainer: Trainer) -> None:
        if trainer.step == 0 and self.timing.at_start:
            self._evaluate(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        every = self.timing.every_steps
        if (every and trainer.step % every == 0) or (self.timing.at_end and trainer.is_done):
            self._evaluate(trainer)

    def state_dict(self) -> dict[str, object]:
        return {"evaluate": self.evaluate.state_dict(), "scores": [asdict(score) for score in self.scores]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.evaluate.load_state_dict(state["evaluate"])
        self.scores = [Score(**score) for score in state["scores"]]

    def _evaluate(self, trainer: Trainer) -> None:
        encoder = trainer.method.eval_encoder()
        if is_sharded(encoder):
            encoder = full_copy(encoder, trainer.config)
        self.scores = self.evaluate(encoder, step=trainer.step)
        if self.corrupt_samples is not None:  # on every rank, which has read images of its own
            self.corrupt_samples.note("evaluation", self.evaluate.corrupt, "it is left out of the evaluation")
        if self.scores:
            values = {score.name: score.value for score in self.scores}
            initial = {f"{s.name}{BASELINE_SUFFIX}": s.baseline for s in self.scores if s.baseline is not None}
            self.metrics.add({"step": trainer.step, "epoch": round(trainer.epoch, 4), **values, **initial})
