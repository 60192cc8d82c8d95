"""The collapse alarm: a run whose targets have become the same for all images says so, or stops."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ssl_zoo.engine.settings import AlarmConfig, AlarmPolicy
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer

log = logging.getLogger(__name__)

_TARGETS = (
    "Check that no gradient reaches the targets; raise targets.momentum, lower optim.lr, warm up longer, "
    "or try targets.normalization=instance, which removes what all patches of an image share"
)
_DISTRIBUTIONS = (
    "Check centring and temperatures: a teacher too warm or centred alone turns uniform, one too cold or not centred "
    "names one prototype; else lower optim.lr or raise the teacher's momentum"
)


@dataclass(frozen=True)
class Limit:
    """A metric that tells of a collapse when it is on the wrong side of a key of ``AlarmConfig``."""

    metric: str
    key: str
    above: bool  # suspicious above the limit; otherwise below it
    finding: str
    remedy: str


LIMITS = (
    Limit("target_cosine", "max_cosine", True, "all images have nearly the same targets", _TARGETS),
    Limit("target_std", "min_std", False, "all targets are nearly the same", _TARGETS),
    Limit("teacher_entropy", "max_entropy", True, "the teacher's distributions are uniform", _DISTRIBUTIONS),
    Limit(
        "prototype_entropy", "min_prototype_entropy", False, "the teacher names one prototype for all", _DISTRIBUTIONS
    ),
)


class Collapse(RuntimeError):
    """The run was stopped because its targets collapsed; the message names metric, limit, causes and what to do."""


class CollapseAlarm(Hook):
    """Counts records in a row with a metric beyond its limit, and warns or stops the run after ``patience`` of them.

    Stands before the checkpointer, which then saves the run that this hook stops. ``Metrics`` hands it its records,
    whose values are means over ranks: all ranks decide alike, and nothing more is read from the device.

    Attributes:
        count: suspicious records in a row so far.
    """

    name = "collapse_alarm"

    def __init__(self, config: AlarmConfig) -> None:
        self.config, self.count = config, 0
        self._tripped: str | None = None

    def examine(self, trainer: Trainer, record: Mapping[str, float]) -> Mapping[str, float]:
        """``collapse`` for the record: 0 = nothing suspicious, 1 = alarm; nothing where no metric is watched.

        Targets that the data alone decide are not watched: flat images have equal pixels in a healthy run.
        """
        fixed = trainer.method.target is not None and not trainer.method.target.learned
        watched = [x for x in LIMITS if x.metric in record and not (fixed and x.metric.startswith("target_"))]
        if self.config.policy is AlarmPolicy.none or not watched:
            return {}
        beyond = [x for x in watched if self._is_beyond(x, record[x.metric])]
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
                "monitor.alarm.policy=warn goes on from it, another output_dir=... starts anew with other settings"
            )

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(state["count"])

    def _is_beyond(self, limit: Limit, value: float) -> bool:
        bound = getattr(self.config, limit.key)
        return value > bound if limit.above else value < bound

    def _message(self, limit: Limit, record: Mapping[str, float]) -> str:
        return (
            f"collapse at step {record['step']}: {limit.finding} ({limit.metric}={record[limit.metric]:.4g}, "
            f"{'above' if limit.above else 'below'} monitor.alarm.{limit.key}={getattr(self.config, limit.key)} in "
            f"{self.count} records in a row). {limit.remedy}"
        )
