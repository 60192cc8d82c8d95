"""The contract of loggers, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.engine.loggers.tags import Tags
from ssl_zoo.engine.settings import MonitorConfig
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.registry import Registry
from ssl_zoo.settings import Section, Settings, with_sections

Record = Mapping[str, Any]  # "step" and values by name; one with "loss" is of a training step, any other of a probe


@dataclass
class LoggerConfig(Settings):
    """Base of every logger's config. Registration sets ``section`` to ``monitor.<name>``."""


@dataclass(frozen=True)
class LoggedRun:
    """What loggers know of a run.

    Attributes:
        path: the run directory, in which each logger has its own files.
        config_text: the configuration as YAML.
        values: the configuration by dotted keys.
        command: the command line that started the run.
        tags: the groups of the run's metrics.
    """

    path: Path
    config_text: str
    values: Mapping[str, Any]
    command: str
    tags: Tags


class Logger(ABC):
    """A logger takes the records and images of a run, on the main process alone."""

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        self.config, self.run = config, run

    @abstractmethod
    def open(self, trainer: Trainer) -> None:
        """Begin at ``trainer.step``; what an earlier start has logged after it is replaced."""

    @abstractmethod
    def write(self, record: Record) -> None:
        """Log a record. A step may have two, one of its training and one of its probe."""

    def image(self, name: str, image: UInt8[Tensor, "3 H W"], step: int) -> None:  # noqa: B027 (not every logger can)
        """Log an image on the host."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left; called once after ``open``, also when the run fails."""


class LoggerRegistry(Registry):
    """A registry that gives each config the section of its logger, so that messages name the full key."""

    def register(self, name: str, config: type[LoggerConfig]) -> Callable[[type], type]:
        if config is not LoggerConfig:
            config.section = f"monitor.{name}"
        return super().register(name, config)


LOGGERS = LoggerRegistry("logger", "loggers")


def monitor_config_class() -> type[MonitorConfig]:
    """Return ``MonitorConfig`` with a section for each registered logger that has settings, those of plug-ins included.

    ``monitor.NAME`` is the section of the logger NAME.
    """
    configs = {name: LOGGERS.config_of(name) for name in LOGGERS.names()}
    sections = [Section(name, cls, LOGGERS.summary(name)) for name, cls in configs.items() if fields(cls)]
    return with_sections(MonitorConfig, LOGGERS.kind, tuple(sections))


def build_loggers(monitor: MonitorConfig, run: LoggedRun) -> Sequence[Logger]:
    """Build the loggers of ``monitor.loggers``.

    Raises:
        ValueError: a logger lacks its library.
        UnknownName: no such logger.
    """
    loggers = []
    for name in monitor.loggers:
        config = getattr(monitor, name, None) or LOGGERS.config_of(name)()
        loggers.append(LOGGERS.get(name)(config, run))
    return loggers
