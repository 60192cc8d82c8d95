"""The report of a comparison: tables, plots, differing config keys, code version and machine."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_zoo.config.keys import flat, written
from ssl_zoo.study.comparison import Attempt, Comparison, Row, Summary
from ssl_zoo.study.document import Block, Command, Document, Figure, Heading, Items, Paragraph, Table
from ssl_zoo.study.evaluation import label_and_score
from ssl_zoo.study.figures import accuracy_against_compute, learning_curve, unit_of
from ssl_zoo.study.label_free import rank_correlations
from ssl_zoo.study.record import RunRecord
from ssl_zoo.study.training import LOG

_NOTHING = "\N{EN DASH}"
_NEIGHBOURS = re.compile(r"knn(\d+)")

_GLOSSARY = (
    "*Score*: the encoder is pretrained without labels and then frozen. The score is the accuracy of a simple "
    "classifier of its features on held-out test images.",
    "*k-NN*: a weighted vote of the k most similar labelled training images. *Logistic regression*: one linear layer, "
    "trained on the labelled training images.",
    "*Random init*: the same network before its first training step. What a method has learned is the gain over it.",
    "*Images*: training images seen, with repetitions.",
    "*Compute*: FLOPs of forward and backward passes, counted from the networks' shapes (a multiply-add counts as "
    "two); G, T and P are 10⁹, 10¹² and 10¹⁵. *Time*: training time without probes, at the run's median speed.",
    "*Seed*: determines initial weights, data order, crops and masks.",
)
_MEANINGS = {
    "target_cosine": "cosine similarity of different images' targets at the same patch; 1 is a collapse",
    "target_std": "standard deviation of the targets; 0 is a collapse",
    "prediction_cosine": "`target_cosine` of predictions; without a limit",
    "rankme": "effective number of dimensions of the pooled features; 1 is a collapse",
    "feature_sigreg": "distance of the scaled features from an isotropic Gaussian; about 1 is none",
    "lejepa_loss": "loss of LeJEPA on scaled features of random crops; lower is better",
    "feature_std": "standard deviation of pooled features of length one over images, at most 1; 0 is a collapse",
    "mean_cosine": "mean cosine similarity of different images' pooled features; 1 is a collapse",
}


def report(comparison: Comparison, folder: Path) -> Document:
    """Build the report for ``folder``, relative to which it links the runs."""
    blocks = [
        *_opening(comparison),
        Heading("Results"),
        _results(comparison),
        *_problems(comparison),
        Heading("How to read the table"),
        *_reading(comparison),
        *_metrics(comparison),
        *_label_free(comparison),
        *_evaluations(comparison),
        *_plots(comparison),
        Heading("Configuration differences"),
        *_differences(comparison.rows),
        Heading("Runs"),
        _runs(comparison, folder),
        *_provenance(comparison),
        Heading("Reproduce"),
        Paragraph("Finished runs are reused and interrupted runs are resumed:"),
        Command(comparison.command),
    ]
    return Document(comparison.title, blocks)


def label_of(column: str) -> str:
    """Return a score's display name: ``20-NN``, ``logistic regression``, ``count: 20-NN`` of an evaluation."""
    if "/" in column:
        label, score = label_and_score(column)
        return f"{label}: {label_of(score)}" if label else label_of(score)
    neighbours = _NEIGHBOURS.fullmatch(column)
    return f"{neighbours[1]}-NN" if neighbours else {"logistic": "logistic regression"}.get(column, column)


def quantity(count: float | None) -> str:
    """Format FLOPs with a unit: ``1.23 PFLOP``."""
    if count is None:
        return "unknown"
    unit = unit_of(count)
    return f"{count / unit.size:.3g} {unit.name}" if count else "0"


def duration(seconds: float | None) -> str:
    """Format seconds: as seconds below two minutes, minutes below two hours, else hours and minutes."""
    if seconds is None:
        return _NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def percent(summary: Summary | None) -> str:
    if summary is None:
        return _NOTHING
    spread = "" if summary.deviation is None else f" ± {100 * summary.deviation:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _opening(comparison: Comparison) -> Iterator[Block]:
    if comparison.question:
        yield Paragraph(comparison.question)
    states = [attempt for _, attempt in comparison.attempts]
    finished = sum(attempt.is_finished for attempt in states)
    seeds = sorted({attempt.seed for attempt in states})
    failed = sum(attempt.failure is not None for attempt in states)
    yield Paragraph(
        f"{len(comparison.rows)} configurations, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}: "
        f"{finished} of {len(states)} runs finished{f', {failed} failed' if failed else ''}."
    )
    yield Items(list(_setting(comparison.rows)))


def _setting(rows: Sequence[Row]) -> Iterator[str]:
    """List the settings that readers need to understand the numbers, with "different" where rows differ."""
    choices = [row.composed.choices for row in rows]
    values = [flat(row.composed.resolved) for row in rows]

    def shared(key: str) -> str:
        texts = {written(own.get(key)) for own in (choices if key in choices[0] else values)}
        return texts.pop() if len(texts) == 1 else "different"

    sizes = f"width {shared('backbone.embed_dim')}, {shared('backbone.depth')} blocks"
    yield f"Data: {shared('data')} at {shared('backbone.image_size')} pixels."
    yield f"Backbone: {shared('backbone')}, {sizes}, patches of {shared('backbone.patch_size')} pixels."
    yield f"Training: optimizer {shared('optim')}, batch size {shared('trainer.batch_size')}."
    labelled, tested = (_count(shared(f"probe.{split}_samples")) for split in ("train", "test"))
    yield f"Scores: {labelled} labelled training images, {tested} test images."


def _count(number: str) -> str:
    if number == "0":
        return "all"
    return f"{int(number):,}" if number.isdecimal() else number


def _problems(comparison: Comparison) -> Iterator[Block]:
    failed, missing, unevaluated = [], [], []
    for row, attempt in comparison.attempts:
        title = f"{row.title}, seed {attempt.seed}"
        if attempt.failure is not None:
            failed.append(f"{title} ({attempt.state}): `{attempt.failure}`")
        elif not attempt.is_finished:
            missing.append(f"{title}: {attempt.state}")
        elif attempt.unevaluated:
            unevaluated.append(f"{title}: missing evaluation: {', '.join(attempt.unevaluated)}")
    if failed:
        yield Heading(f"{len(failed)} failed")
        yield Items(failed)
    if missing or unevaluated:
        yield Heading("Not finished")
        yield Items([*missing, *unevaluated])


def _results(comparison: Comparison) -> Table:
    scores = [f"{label_of(column)}, %" for column in comparison.columns]
    published = [f"paper: {name}" for name in comparison.published_columns]
    unpublished = [_NOTHING] * len(published)
    rows = [
        [baseline.title, *(percent(baseline.scores[c]) for c in comparison.columns), *unpublished, "0", "0", _NOTHING]
        for baseline in comparison.baselines
    ]
    for row in comparison.rows:
        papers = [
            f"{row.published[name]:.1f}" if name in row.published else _NOTHING for name in comparison.published_columns
        ]
        rows.append([_title(row), *(_score(row, c) for c in comparison.columns), *papers, *_cost(row)])
    return Table(["", *scores, *published, "images", "compute", "time"], rows)


def _metrics(comparison: Comparison) -> Iterator[Block]:
    if not comparison.metrics:
        return
    yield Heading("Monitored values")
    yield Paragraph(
        "The last logged value of each run, as mean ± sample standard deviation over the seeds. *Alarm*: runs in which "
        "the collapse alarm was raised, and its first step."
    )
    table = []
    for row in comparison.rows:
        values = (Summary.of(record.last(name) for record in row.records) for name in comparison.metrics)
        table.append([_title(row), *map(_number, values), _alarm(row)])
    yield Table(["", *comparison.metrics, "alarm"], table)
    if known := [f"`{name}`: {_MEANINGS[name]}." for name in comparison.metrics if name in _MEANINGS]:
        yield Items(known)


def _label_free(comparison: Comparison) -> Iterator[Block]:
    rows = [
        [name, str(count), *(_NOTHING if value is None else f"{value:+.2f}" for value in values)]
        for name, count, values in rank_correlations(comparison, comparison.columns)
    ]
    if rows:
        yield Heading("Label-free measures and scores")
        yield Paragraph(
            "Spearman's rank correlation over the finished runs between a measure that needs no labels and each score: "
            "+1 if the measure orders the runs as the score does, 0 if it says nothing, -1 if it reverses them."
        )
        yield Table(["", "runs", *map(label_of, comparison.columns)], rows)


def _number(summary: Summary | None) -> str:
    if summary is None:
        return _NOTHING
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.2g}"
    return f"{summary.mean:.3g}{spread}"


def _alarm(row: Row) -> str:
    steps = [record.alarm_step for record in row.records if record.alarm_step is not None]
    return f"{len(steps)} of {len(row.records)}, step {min(steps)}" if steps else _NOTHING


def _evaluations(comparison: Comparison) -> Iterator[Block]:
    for evaluation in comparison.evaluations:
        yield Heading(evaluation.title)
        overrides = " ".join(f"`{override}`" for override in evaluation.evaluation.overrides)
        changes = f", with {overrides}" if overrides else ""
        yield Paragraph(f"A further evaluation of the same frozen networks{changes}.")
        table = [[b.title, *(percent(b.scores[column]) for column in evaluation.columns)] for b in comparison.baselines]
        for row in comparison.rows:
            table.append([_title(row), *(percent(row.score(column)) for column in evaluation.columns)])
        yield Table(["", *(f"{label_of(column)}, %" for column in evaluation.columns)], table)


def _title(row: Row) -> str:
    finished = sum(attempt.is_finished for attempt in row.attempts)
    if finished == len(row.attempts):
        return row.title
    if finished:
        return f"{row.title} ({finished} of {len(row.attempts)} seeds)"
    return f"{row.title} ({', '.join(dict.fromkeys(attempt.state for attempt in row.attempts))})"


def _score(row: Row, column: str) -> str:
    if any(attempt.is_finished for attempt in row.attempts):
        return percent(row.score(column))
    if any(attempt.failure is not None for attempt in row.attempts):
        return "failed"
    return percent(row.score(column)) if any(record.step for record in row.records) else _NOTHING


def _cost(row: Row) -> list[str]:
    """Return images, compute and time of one run, as means over the runs."""
    images = Summary.of(record.step * record.batch_size for record in row.records)
    flops = Summary.of(row.flops(record) for record in row.records)
    seconds = Summary.of(record.seconds for record in row.records)
    if images is None or flops is None:
        return [_NOTHING] * 3
    return [f"{images.mean:,.0f}", quantity(flops.mean), duration(seconds and seconds.mean)]


def _reading(comparison: Comparison) -> Iterator[Block]:
    yield Paragraph(
        "Each row is one configuration, trained once per seed. Scores are means ± sample standard deviations over the "
        "seeds, without a deviation for a single seed; the cost is that of one run. A difference that is not clearly "
        "larger than the deviations is not evidence."
    )
    if comparison.published_columns:
        what = f" They are {comparison.published_as}." if comparison.published_as else ""
        yield Paragraph(
            f"The columns *paper* hold published values ({comparison.source}).{what} They come from far larger "
            "networks, images and budgets: compare the order of the rows and the large differences, not the values."
        )
    yield Items(_GLOSSARY)


def _plots(comparison: Comparison) -> Iterator[Block]:
    if not any(row.records for row in comparison.rows):
        return
    yield Heading("Accuracy against compute")
    for column in comparison.columns:
        label = label_of(column)
        joined = " Thick lines join the runs of a series." if any(row.series for row in comparison.rows) else ""
        caption = f"{label} accuracy of every run against compute: a thin line through its probes, a marker at its end."
        svg = accuracy_against_compute(comparison, column, label)
        yield Figure(f"compute_{column}", svg, _sentence(caption + joined))
    yield Heading("Learning curves")
    caption = "Training loss of every run. Losses of different methods or targets are not comparable."
    yield Figure("loss", learning_curve(comparison, "loss", "loss"), caption)
    for column in comparison.columns:
        label = label_of(column)
        svg = learning_curve(comparison, column, f"{label} accuracy, %", factor=100)
        yield Figure(f"images_{column}", svg, _sentence(f"{label} accuracy of every run against training images."))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _differences(rows: Sequence[Row]) -> Iterator[Block]:
    chosen = [row.composed.choices for row in rows]
    values = [flat(row.composed.resolved) for row in rows]
    groups = [g for g in dict.fromkeys(g for c in chosen for g in c) if len({c.get(g) for c in chosen}) > 1]
    names = dict.fromkeys(name for own in values for name in own if name not in ("seed", "output_dir", *groups))
    table = [[f"`{group}`", *(written(own.get(group)) for own in chosen)] for group in groups]
    for name in names:
        texts = [written(own[name]) if name in own else _NOTHING for own in values]
        if len(set(texts)) > 1:
            table.append([f"`{name}`", *texts])
    if len(rows) < 2 or not table:
        yield Paragraph("Only the seed and the output directory differ.")
        return
    yield Paragraph(f"All other keys are equal. {_NOTHING}: the configuration does not have the key.")
    yield Table(["key", *(row.title for row in rows)], table)


def _runs(comparison: Comparison, folder: Path) -> Table:
    header = ["run", *(label_of(column) for column in comparison.columns), "state", "images/s", "files"]
    rows = []
    for row, attempt in comparison.attempts:
        record = attempt.record
        scores = [Summary.of([record and record.score(column)]) for column in comparison.columns]
        speed = None if record is None else record.images_per_second
        speed_text = _NOTHING if speed is None else f"{speed:,.0f}"
        title = f"{row.title}, seed {attempt.seed}"
        rows.append([title, *map(percent, scores), attempt.state, speed_text, _link(attempt, folder)])
    return Table(header, rows)


def _link(attempt: Attempt, folder: Path) -> str:
    if not attempt.directory.is_dir():
        return _NOTHING
    path = Path(os.path.relpath(attempt.directory, folder)).as_posix()
    log = f", [log]({path}/{LOG})" if (attempt.directory / LOG).is_file() else ""
    return f"[directory]({path}/){log}"


def _provenance(comparison: Comparison) -> Iterator[Block]:
    """List code versions and machines with the number of runs from each."""
    made: dict[str, int] = {}
    for _, attempt in comparison.attempts:
        if attempt.record is not None:
            origin = _origin(attempt.record)
            made[origin] = made.get(origin, 0) + 1
    if made:
        yield Items([f"{count} {'runs' if count > 1 else 'run'}: {origin}" for origin, count in made.items()])
    if len(made) > 1:
        yield Paragraph("The runs come from several code versions or machines: their times are not comparable.")


def _origin(record: RunRecord) -> str:
    environment = record.environment
    commit = environment.get("commit")
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    code = f"commit `{commit[:10]}`{changed}" if commit else f"version {environment.get('ssl_zoo', 'unknown')}"
    device = environment.get("device") or environment.get("platform", "unknown device")
    torch = environment.get("packages", {}).get("torch", "unknown")
    precision, threads = environment.get("precision", "unknown"), environment.get("num_threads", "unknown")
    return f"{code}, {device}, threads: {threads}, precision: {precision}, torch {torch}"
