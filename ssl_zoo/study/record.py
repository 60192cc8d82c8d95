"""Run directories as records: progress, scores, curves, code version and machine."""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ssl_zoo.config import Composed, ConfigError, compose
from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of
from ssl_zoo.scores import BASELINE_SUFFIX
from ssl_zoo.study.evaluation import Score, scores_of
from ssl_zoo.study.plan import identity

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """A logged value against the number of training images."""

    images: Sequence[int]  # trained on so far
    values: Sequence[float]


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run directory, read once.

    Attributes:
        environment: code version, package versions, machine and length of the run.
        lines: objects of ``metrics.jsonl``.
        step: optimizer step of the newest checkpoint.
    """

    path: Path
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    step: int

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a run directory; the run may be unfinished.

        Raises:
            ValueError: not a run directory, or a file is damaged.
        """
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path} is no run directory: it has no config.yaml")
        checkpoints, environment = list_checkpoints(path), path / "environment.json"
        return cls(
            path,
            json.loads(environment.read_text()) if environment.is_file() else {},
            _lines(path / "metrics.jsonl"),
            step_of(checkpoints[-1]) if checkpoints else 0,
        )

    @functools.cached_property
    def composed(self) -> Composed:
        """The run's configuration.

        Raises:
            ConfigError: this version of the package can't read it.
        """
        return compose(self.path / "config.yaml")

    @property
    def num_steps(self) -> int | None:
        """Length of the complete run; None in directories without it."""
        return self.environment.get("num_steps") or self.composed.config.trainer.num_steps

    @property
    def batch_size(self) -> int:
        return self.environment.get("batch_size") or self.composed.config.trainer.batch_size

    def is_finished(self, num_steps: int | None = None) -> bool:
        """Whether the last step and its scores are saved.

        Args:
            num_steps: length of the planned run, for directories without it.
        """
        wanted = self.num_steps or num_steps
        return wanted is not None and self.step >= wanted

    @functools.cached_property
    def score_names(self) -> Sequence[str]:
        """Names of all scores of the probe's evaluators."""
        evaluators = tuple(self.composed.config.probe.evaluators)
        names = dict.fromkeys(name for line in self.lines if "loss" not in line for name in line)
        return [name for name in names if name.startswith(evaluators) and not name.endswith(BASELINE_SUFFIX)]

    @functools.cached_property
    def evaluated(self) -> Mapping[str, Score]:
        """Scores of the evaluations of studies."""
        return scores_of(self.path)

    def score(self, name: str) -> float | None:
        """Return the latest score after step 0; None if it was not probed."""
        if name in self.evaluated:
            return self.evaluated[name].value
        return self.last(name)

    def baseline(self, name: str) -> float | None:
        """Return the score of the network before its first step; None if it was not probed."""
        if name in self.evaluated:
            return self.evaluated[name].random_init
        key = name + BASELINE_SUFFIX
        return next((line[key] for line in self.lines if key in line), None)

    def last(self, name: str) -> float | None:
        """Return the last logged value after step 0, without the scores of evaluations; None if there is none."""
        return next((line[name] for line in reversed(self.lines) if name in line and line["step"] > 0), None)

    @property
    def alarm_step(self) -> int | None:
        """The first step at which the collapse alarm was raised; None if it never was."""
        return next((line["step"] for line in self.lines if line.get("collapse", 0) >= 1), None)

    def curve(self, name: str) -> Curve:
        """Return a value of ``metrics.jsonl`` against the number of training images."""
        points = [(line["step"] * self.batch_size, line[name]) for line in self.lines if name in line]
        return Curve([images for images, _ in points], [value for _, value in points])

    @functools.cached_property
    def images_per_second(self) -> float | None:
        """Median over the logged steps, which probes and pauses do not lower."""
        speeds = [line["images_per_second"] for line in self.lines if "images_per_second" in line]
        return median(speeds) if speeds else None

    @property
    def seconds(self) -> float | None:
        """Training time without probes: all images at the median speed."""
        speed = self.images_per_second
        return None if speed is None else self.step * self.batch_size / speed


class RunFolder:
    """A folder with the runs of several studies, looked up by the identity of their configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, wanted: str) -> RunRecord | None:
        """Return the run whose configuration has the identity ``wanted``, regardless of the study that trained it.

        Directory names end with the identity. If none matches, the configurations are read: new keys of a later
        version change identities, while their defaults may describe the older run exactly.
        """
        named = [path for path in self.path.glob(f"*-{wanted}") if (path / "config.yaml").is_file()]
        path = min(named, default=self._by_configuration.get(wanted))
        return None if path is None else RunRecord.read(path)

    @functools.cached_property
    def _by_configuration(self) -> Mapping[str, Path]:
        found = {}
        for config in sorted(self.path.glob("*/config.yaml")):
            try:
                found[identity(compose(config))] = config.parent
            except (ValueError, LookupError) as error:
                _LOG.warning("%s can't be read by this version and is skipped: %s", config.parent, error)
        return found


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """Parse the complete lines; the last line may be truncated if the process died."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
