"""The cost of monitoring: CPU time of a run's loggers and visualizations, as a share of its training."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from rich.table import Table

from ssl_zoo.engine.build import RunConfig, build_data, build_run_method
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.hooks import Visualizations
from ssl_zoo.engine.loggers import LoggedRun, Tags, build_loggers
from ssl_zoo.engine.metrics import Metrics
from ssl_zoo.engine.run_directory import flatten
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer


class Timed(Hook):
    """Measures the CPU time of another hook after each step."""

    def __init__(self, hook: Hook) -> None:
        self.hook, self.name, self.follows = hook, hook.name, hook.follows
        self.seconds: list[float] = []

    def before_train(self, trainer: Trainer) -> None:
        self.hook.before_train(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        start = time.process_time()
        self.hook.after_step(trainer, result)
        self.seconds.append(time.process_time() - start)

    def after_train(self, trainer: Trainer) -> None:
        self.hook.after_train(trainer)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self.hook.on_exception(trainer, error)


@dataclass(frozen=True)
class MonitoringCost:
    """CPU seconds of all threads of the training process.

    Attributes:
        step: of a step without monitoring, per round.
        monitored_step: of a step with it, per round. Visualizations of the first and last step count fully.
        records: of the metrics and loggers per step, records being written every ``monitor.log_every`` steps.
        images: of one visualization.
        images_every: steps between two visualizations.
    """

    step: Sequence[float]
    monitored_step: Sequence[float]
    records: float
    images: float
    images_every: int

    @property
    def share(self) -> float:
        """The share of monitoring in a long run, from the times within the hooks."""
        cost = self.records + (self.images / self.images_every if self.images_every else 0.0)
        return cost / (median(self.step) + cost)

    def plain(self) -> dict[str, object]:
        return {**asdict(self), "share": self.share}

    def table(self) -> Table:
        table = Table("CPU time", "ms", title="Cost of monitoring", title_justify="left")
        table.add_row("step without monitoring, per round", "  ".join(f"{1e3 * value:.1f}" for value in self.step))
        table.add_row("step with monitoring, per round", "  ".join(f"{1e3 * s:.1f}" for s in self.monitored_step))
        table.add_row("metrics and loggers, per step", f"{1e3 * self.records:.3f}")
        table.add_row("one visualization", f"{1e3 * self.images:.1f}")
        table.add_row(f"share in a run with a visualization every {self.images_every} steps", f"{self.share:.2%}")
        return table


def measure_monitoring(config: RunConfig, *, rounds: int, steps: int) -> MonitoringCost:
    """Train without and with monitoring in turns, ``steps`` steps each."""
    config = replace(config, trainer=replace(config.trainer, num_steps=steps))
    plain, monitored, hooks = [], [], []
    with processes(config.trainer.device, config.trainer.parallel) as ranks, tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            plain.append(_seconds(config, ranks, []) / steps)
            hooks.append(_hooks(config, Path(folder) / str(turn)))
            monitored.append(_seconds(config, ranks, hooks[-1]) / steps)
    records = [sum(metrics.seconds) / steps for metrics, _ in hooks]
    # The first and the last step always have one.
    images = [image.seconds[-1] for _, image in hooks]
    return MonitoringCost(plain, monitored, median(records), median(images), config.monitor.images_every)


def _hooks(config: RunConfig, run: Path) -> Sequence[Timed]:
    run.mkdir()
    loggers = build_loggers(config.monitor, LoggedRun(run, "", flatten(asdict(config)), "", Tags()))
    metrics = Metrics(config.monitor.log_every, loggers)
    return Timed(metrics), Timed(Visualizations(run / "figures", config.monitor.images_every, loggers))


def _seconds(config: RunConfig, ranks: Processes, hooks: Sequence[Hook]) -> float:
    method, data = build_run_method(config), build_data(config, ranks)
    settings = {"optim": config.optim, "config": config.trainer, "seed": config.seed}
    trainer = Trainer(method, data, ranks, hooks=hooks, **settings)
    start = time.process_time()
    trainer.train()
    return time.process_time() - start
