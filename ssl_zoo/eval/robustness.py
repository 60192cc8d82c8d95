"""Scores on corrupted test images beside those on clean ones, by any evaluator."""

from collections.abc import Sequence
from dataclasses import replace

from ssl_zoo.data.corruptions import Corruption
from ssl_zoo.eval.base import EvaluatedModel, Evaluator
from ssl_zoo.scores import Score


def scores(evaluator: Evaluator, model: EvaluatedModel) -> Sequence[Score]:
    """Score the clean test images and, where the model has them, the corrupted ones.

    ``NAME/CORRUPTION`` is the mean of score ``NAME`` over the severities of a corruption, and ``NAME/corrupted`` the
    mean over the corruptions. Their details have the values in the mean, and its ratio to the score on clean images:
    an accuracy falls below 1, an error rises above it.
    """
    if not model.corrupted:
        return evaluator(model)
    clean, *corrupted = evaluator.on_tests(model, [model.test, *model.corrupted])
    summaries: list[Score] = []
    for score in clean:
        summaries += _summaries(score, [split.corruption for split in model.corrupted], corrupted)
    return [*clean, *summaries]


def _summaries(clean: Score, corruptions: Sequence[Corruption], corrupted: Sequence[Sequence[Score]]) -> list[Score]:
    """Return the means of one score over severities, and their mean over corruptions."""
    by_severity: dict[str, dict[int, float]] = {}
    for corruption, of_split in zip(corruptions, corrupted, strict=True):
        value = {score.name: score.value for score in of_split}.get(clean.name)
        if value is not None:  # health leaves out measures that are not finite
            by_severity.setdefault(corruption.name, {})[corruption.severity] = value
    means = {name: sum(values.values()) / len(values) for name, values in by_severity.items()}
    severities = sorted({corruption.severity for corruption in corruptions})
    protocol = {**clean.protocol, "severities": severities, "corruption_seed": corruptions[0].seed}

    def summary(name: str, value: float, names: Sequence[str], **details: object) -> Score:
        details["relative_to_clean"] = value / clean.value if clean.value else None
        of_names = {**protocol, "corruptions": list(names)}
        return replace(clean, name=f"{clean.name}/{name}", value=value, protocol=of_names, spread=None, details=details)

    found = [summary(name, mean, [name], by_severity=by_severity[name]) for name, mean in means.items()]
    if found:
        found.append(summary("corrupted", sum(means.values()) / len(means), sorted(means), by_corruption=means))
    return found
