"""Evaluation of a finished encoder: its scores and those of random weights, as JSON files and as a table."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ssl_zoo.eval import robustness
from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator
from ssl_zoo.eval.cache import weights_hash
from ssl_zoo.eval.probe import Probe
from ssl_zoo.io import write_atomic
from ssl_zoo.nn import ViT
from ssl_zoo.scores import Score


@dataclass(frozen=True)
class EvaluatorResult:
    """The scores of one evaluator on one label set.

    Attributes:
        evaluator: the registered name.
        label: the label set; None for the source's first.
        seconds: wall-clock time without the random-init baseline. It includes the extraction of features that no
            earlier evaluator has extracted.
    """

    evaluator: str
    label: str | None
    scores: Sequence[Score]
    seconds: float

    @property
    def file_name(self) -> str:
        """Results of the same protocol on the same split share a name, so that a repetition replaces its file."""
        label = f"_{self.label}" if self.label else ""
        last = self.scores[-1]
        corrupted = f"_corrupted_{last.protocol_hash}" if "corruptions" in last.protocol else ""
        return f"{self.evaluator}{label}_{self.scores[0].protocol_hash}{corrupted}.json"

    def write(self, folder: Path, metadata: Mapping[str, Any]) -> Path:
        """Write a JSON file with the encoder's metadata and every score with its protocol."""
        scores = [
            {
                "name": score.name,
                "value": score.value,
                "spread": score.spread,
                "is_fraction": score.is_fraction,
                "random_init": score.baseline,
                "details": dict(score.details),
                "protocol_hash": score.protocol_hash,
                "protocol": dict(score.protocol),
            }
            for score in self.scores
        ]
        own = {"evaluator": self.evaluator, "label": self.label, "seconds": round(self.seconds, 4), "scores": scores}
        path = folder / self.file_name
        write_atomic(path, json.dumps({**metadata, **own}, indent=1) + "\n")
        return path


class Baselines:
    """Scores of random-init encoders, measured once for all runs with equal initial weights."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, float]] = {}

    def scores(
        self, evaluator: Evaluator, initial: EvaluatedModel, identity: Mapping[str, object]
    ) -> Mapping[str, float]:
        """Return the values of the evaluator's scores by name.

        Args:
            identity: what determines the scores besides the weights and the evaluator: data, image size, precision.
        """
        parts = {"weights": weights_hash(initial.encoder), **evaluator.protocol(initial), **identity}
        parts["corruptions"] = [str(split.corruption) for split in initial.corrupted]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._known:
            self._known[key] = {score.name: score.value for score in robustness.scores(evaluator, initial)}
        return self._known[key]


def evaluate(
    probe: Probe, encoder: ViT, initial_encoder: ViT | None, baselines: Baselines, identity: Mapping[str, object]
) -> Iterator[EvaluatorResult]:
    """Yield the result of each of the probe's evaluators.

    Args:
        initial_encoder: the random-init encoder, whose scores are the baseline; None leaves the baseline out.
        identity: as for ``Baselines``.
    """
    model = probe.evaluated_model(encoder)
    initial = None if initial_encoder is None else probe.evaluated_model(initial_encoder)
    for evaluator in probe.evaluators:
        if initial is not None:
            probe.baseline |= baselines.scores(evaluator, initial, identity)
        start = time.perf_counter()
        scores = [probe.complete(score) for score in robustness.scores(evaluator, model)]
        seconds = time.perf_counter() - start
        yield EvaluatorResult(EVALUATORS.name_of(evaluator.config), probe.label, scores, seconds)


class ExtractionProgress:
    """A progress bar per split and network during feature extraction, shown if the console is a terminal."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("features of {task.description} images"), BarColumn(), MofNCompleteColumn()
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._current: tuple[str, TaskID] | None = None

    def __enter__(self) -> "ExtractionProgress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, split: str, done: int, total: int) -> None:
        """Update the bar; ``EvaluatedModel`` calls this."""
        if self._current is None or self._current[0] != split:
            self._current = split, self._bars.add_task(split, total=total)
        self._bars.update(self._current[1], completed=done)


def table(results: Mapping[str, Sequence[EvaluatorResult]]) -> Table:
    """Make a table with one row per score and one column per network, with the baselines of random initial weights.

    Args:
        results: results by the name of their network. The cell of a score that a network lacks is empty.
    """
    scores = {
        name: {(result.label or "", score.name): score for result in of_network for score in result.scores}
        for name, of_network in results.items()
    }
    rows = list(dict.fromkeys(row for of_network in scores.values() for row in of_network))
    baselines = {name: [_baseline_cell(of_network.get(row)) for row in rows] for name, of_network in scores.items()}
    is_shared = len({tuple(column) for column in baselines.values()}) == 1
    columns = {"evaluation": [name for _, name in rows], "labels": [label for label, _ in rows]}
    for name, of_network in scores.items():
        columns["random init" if is_shared else f"{name}, random init"] = baselines[name]
        columns[name if len(results) > 1 else "trained"] = [_value_cell(of_network.get(row)) for row in rows]
    if len(results) == 1:
        [only] = results.values()
        columns["seconds"] = [f"{r.seconds:.1f}" if i == 0 else "" for r in only for i in range(len(r.scores))]
    made = Table(*columns, title=next(iter(results)) if len(results) == 1 else None, title_justify="left")
    for cells in zip(*columns.values(), strict=True):
        made.add_row(*cells)
    return made


def _baseline_cell(score: Score | None) -> str:
    return "" if score is None or score.baseline is None else _formatted(score.baseline, score.is_fraction)


def _value_cell(score: Score | None) -> str:
    if score is None:
        return ""
    spread = "" if score.spread is None else f" ± {_formatted(score.spread, score.is_fraction)}"
    return _formatted(score.value, score.is_fraction) + spread


def _formatted(value: float, is_fraction: bool) -> str:
    return f"{value:.2%}" if is_fraction else f"{value:.4g}"
