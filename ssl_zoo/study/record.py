"""What a run directory tells: how far its run came, its scores, its curves, and what made it."""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ssl_zoo.config import Composed, ConfigError, compose
from ssl_zoo.engine.checkpoint.state import list_checkpoints, step_of
from ssl_zoo.study.evaluation import Score, scores_of
from ssl_zoo.study.plan import identity

_LOG = logging.getLogger(__name__)
_BASELINE = "_random_init"  # suffix of a score's name where it is of the network before its first step


@dataclass(frozen=True)
class Curve:
    """A logged value over the course of a run."""

    images: Sequence[int]  # that were trained on until then
    values: Sequence[float]


@dataclass(frozen=True)
class RunRecord:
    """The files of a run, read once.

    Attributes:
        lines: of ``metrics.jsonl``.
        environment: versions, code, machine, length.
        step: optimizer steps of the newest checkpoint.
    """

    path: Path
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    step: int

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """The record of a run directory, also of a run that goes on or was cut off.

        Raises:
            ValueError: no run directory, or a damaged file.
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
        """Its configuration.

        Raises:
            ConfigError: this version does not read it.
        """
        return compose(self.path / "config.yaml")

    @property
    def num_steps(self) -> int | None:
        """Length of the whole run; None in directories that don't say it."""
        return self.environment.get("num_steps") or self.composed.config.trainer.num_steps

    @property
    def batch_size(self) -> int:
        return self.environment.get("batch_size") or self.composed.config.trainer.batch_size

    def is_finished(self, num_steps: int | None = None) -> bool:
        """Whether the last step is saved, and with it its scores.

        Args:
            num_steps: of the run as planned, for directories that don't say it.
        """
        wanted = self.num_steps or num_steps
        return wanted is not None and self.step >= wanted

    @functools.cached_property
    def score_names(self) -> Sequence[str]:
        """Of all scores, as the probe's protocols name them."""
        protocols = tuple(self.composed.config.probe.evaluators)
        names = dict.fromkeys(name for line in self.lines if "loss" not in line for name in line)
        return [name for name in names if name.startswith(protocols) and not name.endswith(_BASELINE)]

    @functools.cached_property
    def evaluated(self) -> Mapping[str, Score]:
        """Scores of the evaluations that studies asked for."""
        return scores_of(self.path)

    def score(self, name: str) -> float | None:
        """The latest value of a score after training began; None where it was not probed."""
        if name in self.evaluated:
            return self.evaluated[name].value
        return next((line[name] for line in reversed(self.lines) if name in line and line["step"] > 0), None)

    def baseline(self, name: str) -> float | None:
        """The same score of the network before its first step; None where that was not probed."""
        if name in self.evaluated:
            return self.evaluated[name].random_init
        key = name + _BASELINE
        return next((line[key] for line in self.lines if key in line), None)

    def curve(self, name: str) -> Curve:
        """A value of ``metrics.jsonl`` over the images trained on."""
        points = [(line["step"] * self.batch_size, line[name]) for line in self.lines if name in line]
        return Curve([images for images, _ in points], [value for _, value in points])

    @functools.cached_property
    def images_per_second(self) -> float | None:
        """The median over the logged steps, which probes and pauses in between don't lower."""
        speeds = [line["images_per_second"] for line in self.lines if "images_per_second" in line]
        return median(speeds) if speeds else None

    @property
    def seconds(self) -> float | None:
        """Of training alone: all images at the median speed."""
        speed = self.images_per_second
        return None if speed is None else self.step * self.batch_size / speed


class RunFolder:
    """The runs of all studies of one place, found by the identity of their configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, wanted: str) -> RunRecord | None:
        """The run whose configuration has the identity ``wanted``, whatever study trained it.

        Directories carry the identity in their name. Where none does, configurations are read: a version of this
        package with further keys gives other identities, while their defaults may say just what an older run did.
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
                _LOG.warning("%s can't be read by this version and is left out: %s", config.parent, error)
        return found


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """Whole lines; the last one may be cut off where a process died."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
