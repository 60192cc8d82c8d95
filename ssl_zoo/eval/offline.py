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

from ssl_zoo.eval.base import EVALUATORS
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
        content = {**facts, "evaluator": self.evaluator, "seconds": round(self.seconds, 4), "scores": scores}
        path = folder / self.file_name
        write_atomic(path, json.dumps(content, indent=1) + "\n")
        return path


def evaluate(probe: OnlineProbe, encoder: ViT, initial: ViT | None) -> Iterator[Evaluated]:
    """The scores of each of the probe's evaluators.

    Args:
        initial: the encoder as it was initialised, whose scores are the baseline; None measures none.
    """
    subject = probe.subject(encoder)
    start = None if initial is None else probe.subject(initial)
    for evaluator in probe.evaluators:
        if start is not None:
            probe.baseline |= {score.name: score.value for score in evaluator(start)}
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


def table(results: Sequence[Evaluated], title: str) -> Table:
    """One row a score: value with its spread, the random-init score, seconds of its evaluator."""
    result = Table("evaluation", "labels", "random init", "trained", "seconds", title=title, title_justify="left")
    for part in results:
        for position, score in enumerate(part.scores):
            spread = "" if score.spread is None else f" ± {shown(score.spread, score.is_fraction)}"
            baseline = "" if score.baseline is None else shown(score.baseline, score.is_fraction)
            seconds = f"{part.seconds:.1f}" if position == 0 else ""
            value = shown(score.value, score.is_fraction) + spread
            result.add_row(score.name, part.label or "", baseline, value, seconds)
    return result


def shown(value: float, is_fraction: bool) -> str:
    """A score as people read it: accuracies in percent."""
    return f"{value:.2%}" if is_fraction else f"{value:.4g}"
