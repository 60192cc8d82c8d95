"""Evaluations of a study's finished runs: their commands, folders and scores."""

import functools
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.plugins import plugin_words
from ssl_zoo.study.file import Evaluation

_FOLDER = "eval"  # in a run directory; holds one folder per evaluation


@dataclass(frozen=True)
class Score:
    """The score of a trained network and, where it was measured, of its random initial weights."""

    value: float
    random_init: float | None


@dataclass(frozen=True)
class PlannedEvaluation:
    """An evaluation to run on every trained network of a study."""

    name: str
    evaluation: Evaluation

    @property
    def title(self) -> str:
        return self.evaluation.title or self.name

    @functools.cached_property
    def folder(self) -> str:
        """Name of its folder in a run directory, ending with a hash of what is evaluated."""
        evaluation = self.evaluation
        content = json.dumps([evaluation.evaluators, evaluation.labels, evaluation.overrides])
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def columns(self) -> list[str]:
        """Names of its scores, as ``scores_of`` returns them."""
        return [_name(self.folder, label, score) for label in self._labels for score in self.evaluation.columns]

    @property
    def _labels(self) -> Sequence[str | None]:
        return self.evaluation.labels or [None]

    def is_done(self, run: Path) -> bool:
        """Whether a run directory has every score of the evaluation."""
        return not self.missing(run)

    def missing(self, run: Path) -> list[str]:
        """Return the missing scores, such as ``count knn20``, or ``knn20`` for the data's first label set."""
        known = scores_of(run)
        return [" ".join(label_and_score(column)).strip() for column in self.columns if column not in known]

    def command(self, run: Path, plugins: Sequence[str] = ()) -> list[str]:
        """Return the command that evaluates the run in a directory."""
        evaluation = self.evaluation
        labels = ["--label", *evaluation.labels] if evaluation.labels else []
        paths = ["--run", str(run), "--out", str(run / _FOLDER / self.folder)]
        scores = ["--evaluators", *evaluation.evaluators, *labels, *plugin_words(plugins), *evaluation.overrides]
        return [sys.executable, "-m", "ssl_zoo.tools.eval_net", *paths, *scores]


def plan_evaluations(evaluations: Mapping[str, Evaluation]) -> list[PlannedEvaluation]:
    """Return the evaluations of a study, in the order of its file."""
    return [PlannedEvaluation(name, evaluation) for name, evaluation in evaluations.items()]


def label_and_score(column: str) -> tuple[str, str]:
    """Split a column's name into its label set, empty for the data's first, and its score, such as ``knn20/jpeg``."""
    _, label, score = column.split("/", 2)
    return label, score


def scores_of(run: Path) -> dict[str, Score]:
    """Read all evaluation scores of a run directory, by evaluation, label set and score name."""
    found = {}
    for path in sorted((run / _FOLDER).glob("*/*.json")):
        content = json.loads(path.read_text())
        for score in content["scores"]:
            name = _name(path.parent.name, content.get("label"), score["name"])
            found[name] = Score(score["value"], score["random_init"])
    return found


def _name(folder: str, label: str | None, score: str) -> str:
    return f"{folder}/{label or ''}/{score}"
