"""Evaluations of finished runs that a study asks for: their commands, their folders, their scores."""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.plugins import plugin_words
from ssl_zoo.study.file import Evaluation

_FOLDER = "eval"  # in a run directory: a folder for each evaluation


@dataclass(frozen=True)
class Score:
    """Of a trained network, beside that of its random weights, which not every evaluation measures."""

    value: float
    random_init: float | None


@dataclass(frozen=True)
class PlannedEvaluation:
    """An evaluation of the network of every run of a study."""

    name: str
    evaluation: Evaluation

    @property
    def title(self) -> str:
        return self.evaluation.title or self.name

    @functools.cached_property
    def folder(self) -> str:
        """Name of its folder in a run directory; its end is that of equal evaluations alone."""
        asked = self.evaluation
        content = json.dumps([asked.protocols, asked.labels, asked.overrides])
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def columns(self) -> list[str]:
        """Names of its scores, as ``scores_of`` has them."""
        return [_name(self.folder, label, score) for label in self._labels for score in self.evaluation.columns]

    @property
    def _labels(self) -> Sequence[str | None]:
        return self.evaluation.labels or [None]

    def is_done(self, run: Path) -> bool:
        """Whether a run directory has every score."""
        return not self.missing(run)

    def missing(self, run: Path) -> list[str]:
        """The scores that a run directory lacks, as ``count knn20`` or, of the data's first labels, ``knn20``."""
        known = scores_of(run)
        return [" ".join(question_of(column)).strip() for column in self.columns if column not in known]

    def command(self, run: Path, plugins: Sequence[str] = ()) -> list[str]:
        """What evaluates the run in a directory."""
        asked = self.evaluation
        labels = ["--label", *asked.labels] if asked.labels else []
        place = ["--run", str(run), "--out", str(run / _FOLDER / self.folder)]
        what = ["--protocol", *asked.protocols, *labels, *plugin_words(plugins), *asked.overrides]
        return [sys.executable, "-m", "ssl_zoo.tools.eval_net", *place, *what]


def plan_evaluations(evaluations: Mapping[str, Evaluation]) -> list[PlannedEvaluation]:
    """Those of a study, in the order of its file."""
    return [PlannedEvaluation(name, evaluation) for name, evaluation in evaluations.items()]


def question_of(column: str) -> tuple[str, str]:
    """The label set, empty for the data's first, and the score that a column's name is made of."""
    _, label, score = column.split("/")
    return label, score


def scores_of(run: Path) -> dict[str, Score]:
    """All scores of evaluations in a run directory, by names of evaluation, label set and score."""
    return dict(_read(run))


def _read(run: Path) -> Iterator[tuple[str, Score]]:
    for path in sorted((run / _FOLDER).glob("*/*.json")):
        content = json.loads(path.read_text())
        for score in content["scores"]:
            yield (
                _name(path.parent.name, content.get("label"), score["name"]),
                Score(score["value"], score["random_init"]),
            )


def _name(folder: str, label: str | None, score: str) -> str:
    return f"{folder}/{label or ''}/{score}"
