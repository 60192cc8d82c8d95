"""How well label-free measures order runs as their probes do: a model is to be chosen without labels."""

from collections.abc import Iterator, Sequence

from scipy.stats import spearmanr

from ssl_zoo.scores import LABEL_FREE
from ssl_zoo.study.comparison import Comparison
from ssl_zoo.study.record import RunRecord

_MIN_RUNS = 5
_MEASURES = (*LABEL_FREE, "scaled_loss")  # of the probe, and LeJEPA's of its own training


def rank_correlations(comparison: Comparison, columns: Sequence[str]) -> Iterator[tuple[str, int, list[float | None]]]:
    """Yield each label-free measure, its number of runs, and Spearman's rank correlation with the score of each column.

    Measures that fewer than five finished runs have are left out. A correlation is None where all runs tie.
    """
    records = [attempt.record for _, attempt in comparison.attempts if attempt.is_finished and attempt.record]
    for measure in _MEASURES:
        measured = [record for record in records if record.last(measure) is not None]
        if len(measured) >= _MIN_RUNS:
            yield measure, len(measured), [_correlation(measured, measure, column) for column in columns]


def _correlation(records: Sequence[RunRecord], measure: str, column: str) -> float | None:
    pairs = [(record.last(measure), record.score(column)) for record in records if record.score(column) is not None]
    values, scores = zip(*pairs, strict=True) if pairs else ((), ())
    if min(len(set(values)), len(set(scores))) < 2:
        return None
    return float(spearmanr(values, scores).statistic)
