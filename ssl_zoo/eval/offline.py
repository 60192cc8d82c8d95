"""The evaluation of a finished encoder: scores beside those of random weights, on the terminal and as files."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ssl_zoo.eval.base import EVALUATORS, Evaluator, Subject
from ssl_zoo.eval.cache import weights_hash
from ssl_zoo.eval.online import OnlineProbe, ProbeScore
from ssl_zoo.io import write_atomic
from ssl_zoo.nn import ViT


@dataclass(frozen=True)
class Evaluated:
    """The scores of one evaluator.

    Attributes:
        evaluator: its registered name.
        label: the label set, None for the source's first.
        seconds: that the scores took, the random-init ones not counted; the first evaluator that needs some features
            pays for their extraction.
    """

    evaluator: str
    label: str | None
    scores: Sequence[ProbeScore]
    seconds: float

    @property
    def file_name(self) -> str:
        """Equal for the same protocol on the same split, so that a repetition replaces its file."""
        label = f"_{self.label}" if self.label else ""
        return f"{self.evaluator}{label}_{self.scores[0].protocol_hash}.json"

    def write(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Write a JSON file: ``facts`` of the encoder, then every score with the protocol that defines it."""
        scores = [
            {
                "name": score.name,
                "value": score.value,
                "spread": score.spread,
                "random_init": score.baseline,
                "details": dict(score.details),
                "protocol_hash": score.protocol_hash,
                "protocol": dict(score.protocol),
            }
            for score in self.scores
        ]
        content = {
            **facts,
            "evaluator": self.evaluator,
            "label": self.label,
            "seconds": round(self.seconds, 4),
            "scores": scores,
        }
        path = folder / self.file_name
        write_atomic(path, json.dumps(content, indent=1) + "\n")
        return path


class Baselines:
    """Scores of random-init encoders, measured once for all runs that start from the same weights."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, float]] = {}

    def scores(self, evaluator: Evaluator, start: Subject, identity: Mapping[str, object]) -> Mapping[str, float]:
        """Values by name.

        Args:
            identity: what decides them beside the weights and the evaluator: data, image size, precision.
        """
        parts = {"weights": weights_hash(start.encoder), **evaluator.protocol(start), **identity}
        key = json.dumps(parts, sort_keys=True)
        if key not in self._known:
            self._known[key] = {score.name: score.value for score in evaluator(start)}
        return self._known[key]


def evaluate(
    probe: OnlineProbe, encoder: ViT, initial: ViT | None, baselines: Baselines, identity: Mapping[str, object]
) -> Iterator[Evaluated]:
    """The scores of each of the probe's evaluators.

    Args:
        initial: the encoder as it was initialised, whose scores are the baseline; None measures none.
        identity: as for ``Baselines``.
    """
    subject = probe.subject(encoder)
    start = None if initial is None else probe.subject(initial)
    for evaluator in probe.evaluators:
        if start is not None:
            probe.baseline |= baselines.scores(evaluator, start, identity)
        began = time.perf_counter()
        scores = [probe.beside_baseline(score) for score in evaluator(subject)]
        seconds = time.perf_counter() - began
        yield Evaluated(EVALUATORS.name_of(evaluator.config), probe.label, scores, seconds)


class ExtractionProgress:
    """A bar per split and network while their features are extracted, where the console is a terminal."""

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
        """As ``Subject`` calls it."""
        if self._current is None or self._current[0] != split:
            self._current = split, self._bars.add_task(split, total=total)
        self._bars.update(self._current[1], completed=done)


def table(results: Mapping[str, Sequence[Evaluated]]) -> Table:
    """One row a score, one column a network: value with its spread, beside that of random initial weights.

    Args:
        results: by the name of their network. Scores that some of them lack stay empty there.
    """
    scores = {
        name: {(part.label or "", score.name): score for part in parts for score in part.scores}
        for name, parts in results.items()
    }
    rows = list(dict.fromkeys(row for of_network in scores.values() for row in of_network))
    starts = {name: [_baseline(of_network.get(row)) for row in rows] for name, of_network in scores.items()}
    share_start = len({tuple(column) for column in starts.values()}) == 1
    columns = {"evaluation": [name for _, name in rows], "labels": [label for label, _ in rows]}
    for name, of_network in scores.items():
        columns["random init" if share_start else f"{name}, random init"] = starts[name]
        columns[name if len(results) > 1 else "trained"] = [_with_spread(of_network.get(row)) for row in rows]
    if len(results) == 1:
        [parts] = results.values()
        columns["seconds"] = [f"{p.seconds:.1f}" if i == 0 else "" for p in parts for i in range(len(p.scores))]
    shown_table = Table(*columns, title=next(iter(results)) if len(results) == 1 else None, title_justify="left")
    for cells in zip(*columns.values(), strict=True):
        shown_table.add_row(*cells)
    return shown_table


def _baseline(score: ProbeScore | None) -> str:
    return "" if score is None or score.baseline is None else shown(score.baseline, score.is_fraction)


def _with_spread(score: ProbeScore | None) -> str:
    if score is None:
        return ""
    spread = "" if score.spread is None else f" ± {shown(score.spread, score.is_fraction)}"
    return shown(score.value, score.is_fraction) + spread


def shown(value: float, is_fraction: bool) -> str:
    """A score as people read it: accuracies in percent."""
    return f"{value:.2%}" if is_fraction else f"{value:.4g}"
