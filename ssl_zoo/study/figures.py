"""SVG plots of a comparison, small enough for the width of a phone."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from ssl_zoo.study.comparison import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colour-blind safe palette; black is the baseline.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")
_MARKERS = "osD^vPX*<>"
_WIDTH, _PLOT_HEIGHT, _LEGEND_ROW = 6.0, 3.8, 0.24  # inches


@dataclass(frozen=True)
class Unit:
    """A unit of compute."""

    size: float  # FLOPs
    name: str


_UNITS = (Unit(1e18, "EFLOP"), Unit(1e15, "PFLOP"), Unit(1e12, "TFLOP"), Unit(1e9, "GFLOP"))


def unit_of(flops: float) -> Unit:
    """Return the largest unit that does not exceed the count."""
    return next((unit for unit in _UNITS if flops >= unit.size), Unit(1e6, "MFLOP"))


def accuracy_against_compute(comparison: Comparison, column: str, label: str) -> bytes:
    """Plot each run as a thin line through its probes with a marker at its end; thick lines join series."""

    unit = unit_of(max((row.flops(record) for row in comparison.rows for record in row.records), default=0.0))

    def plot(axes: "Axes") -> None:
        for row, colour, marker in _styled(comparison.rows):
            for record in row.records:
                curve = record.curve(column)
                compute = [images * row.cost.flops_per_image / unit.size for images in curve.images]
                scores = [100 * value for value in curve.values]
                axes.plot(compute, scores, color=colour, linewidth=1, alpha=0.6)
                axes.plot(compute[-1:], scores[-1:], marker, color=colour, markersize=7)
            axes.plot([], [], marker, color=colour, label=row.title)
        for series in dict.fromkeys(row.series for row in comparison.rows if row.series):
            own = [(row, colour) for row, colour, _ in _styled(comparison.rows) if row.series == series]
            means = [(fmean(map(row.flops, row.records)), row.score(column)) for row, _ in own if row.records]
            points = sorted((flops / unit.size, 100 * score.mean) for flops, score in means if score is not None)
            axes.plot([x for x, _ in points], [y for _, y in points], color=own[0][1], linewidth=2)
        _plot_baselines(axes, comparison, column)
        axes.set_xlabel(f"training compute, {unit.name}")
        axes.set_ylabel(f"{label} accuracy, %")

    return _render(plot)


def learning_curve(comparison: Comparison, name: str, label: str, *, factor: float = 1.0) -> bytes:
    """Plot a logged value against the number of training images, one line per run."""

    def plot(axes: "Axes") -> None:
        for row, colour, marker in _styled(comparison.rows):
            for record in row.records:
                curve = record.curve(name)
                few = marker if len(curve.images) < 20 else None
                values = [factor * value for value in curve.values]
                axes.plot(curve.images, values, color=colour, linewidth=1.2, alpha=0.8, marker=few, markersize=4)
            axes.plot([], [], marker, linestyle="-", color=colour, label=row.title)
        axes.set_xlabel("training images")
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylabel(label)

    return _render(plot)


def _styled(rows: Sequence[Row]) -> Sequence[tuple[Row, str, str]]:
    """Return each row with its colour, which a series shares, and its marker."""
    groups = list(dict.fromkeys(row.series or row.title for row in rows))
    colours = {group: _COLOURS[number % len(_COLOURS)] for number, group in enumerate(groups)}
    return [
        (row, colours[row.series or row.title], _MARKERS[number % len(_MARKERS)]) for number, row in enumerate(rows)
    ]


def _plot_baselines(axes: "Axes", comparison: Comparison, column: str) -> None:
    baselines = comparison.baselines
    known = [summary.mean for baseline in baselines if (summary := baseline.scores[column]) is not None]
    for value in known:
        label = "random init" if value == known[0] else None
        axes.axhline(100 * value, color="black", linewidth=1, linestyle=":", label=label)


def _render(plot: "Callable[[Axes], None]") -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    # A fixed salt makes equal plots equal files.
    with matplotlib.rc_context({"svg.hashsalt": "ssl_zoo", "font.size": 12, "axes.spines.top": False}):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.spines["right"].set_visible(False)
        axes.grid(alpha=0.3)
        plot(axes)
        handles, labels = axes.get_legend_handles_labels()
        columns = 2 if len(labels) > 3 and max(map(len, labels)) < 28 else 1
        figure.set_size_inches(_WIDTH, _PLOT_HEIGHT + _LEGEND_ROW * math.ceil(len(labels) / columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
        output = io.BytesIO()
        figure.savefig(output, format="svg", metadata={"Date": None})
    return output.getvalue()
