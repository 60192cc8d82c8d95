"""The collapse alarm: it warns of a run, or stops one, whose metrics lie beyond the method's limits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ssl_zoo.collapse import Limit
from ssl_zoo.engine.settings import AlarmConfig, AlarmPolicy
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer

log = logging.getLogger(__name__)


class Collapse(RuntimeError):
    """The alarm stopped the run; the message names metric, limit, causes and what to do."""


class CollapseAlarm(Hook):
    """Counts records in a row with a metric beyond its limit, and warns or stops the run after ``patience`` of them.

    ``Metrics`` hands it its records, whose values are means over ranks: all ranks decide alike, and nothing more is
    read from the device.

    Attributes:
        count: suspicious records in a row so far.
    """

    name = "collapse_alarm"
    follows = ("metrics",)  # whose record of the step it examines before its own ``after_step``

    def __init__(self, config: AlarmConfig) -> None:
        self.config, self.count = config, 0
        self._limits: Sequence[Limit] = ()
        self._tripped: str | None = None

    def before_train(self, trainer: Trainer) -> None:
        self._limits = limits_of(trainer.method.collapse_limits(), self.config)

    def examine(self, record: Mapping[str, float]) -> Mapping[str, float]:
        """Return ``collapse`` for the record: 0 = nothing suspicious, 1 = alarm; nothing where no metric is watched."""
        watched = [limit for limit in self._limits if limit.metric in record]
        if self.config.policy is AlarmPolicy.none or not watched:
            return {}
        beyond = [limit for limit in watched if limit.is_beyond(record[limit.metric])]
        self.count = self.count + 1 if beyond else 0
        if self.count == self.config.patience:
            self._tripped = self._message(beyond[0], record)
        return {"collapse": min(1.0, self.count / self.config.patience)}

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if self._tripped is None:
            return
        if self.config.policy is AlarmPolicy.stop:
            trainer.stop = True
            return
        if trainer.processes.is_main:
            log.warning("%s. monitor.alarm.policy=stop ends such a run", self._tripped)
        self._tripped = None

    def after_train(self, trainer: Trainer) -> None:
        if self._tripped is not None:
            raise Collapse(
                f"{self._tripped}. The checkpoint of this step is saved; the same command with "
                "monitor.alarm.policy=warn resumes from it, another output_dir=... starts a new run with other settings"
            )

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(state["count"])

    def _message(self, limit: Limit, record: Mapping[str, float]) -> str:
        return (
            f"collapse at step {record['step']}: {limit.finding} ({limit.metric}={record[limit.metric]:.4g}, "
            f"{'above' if limit.above else 'below'} {limit.bound:g} in {self.count} records in a row; "
            f"monitor.alarm.limits changes the bound). {limit.remedy}"
        )


def limits_of(limits: Sequence[Limit], config: AlarmConfig) -> Sequence[Limit]:
    """Replace bounds of a method's limits by those of ``monitor.alarm.limits``.

    Raises:
        ValueError: the config bounds a metric that the method does not watch.
    """
    known = [limit.metric for limit in limits]
    for metric in config.limits:
        if metric not in known:
            raise ValueError(
                f"monitor.alarm.limits: this run watches no {metric!r}; it watches {', '.join(known) or 'nothing'}"
            )
    return [replace(limit, bound=config.limits.get(limit.metric, limit.bound)) for limit in limits]
