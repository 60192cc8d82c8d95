"""Plots of comparisons."""

import re
from dataclasses import replace

from tiny_studies import tiny_study

from ssl_zoo.study.comparison import compare_study
from ssl_zoo.study.figures import accuracy_against_compute
from ssl_zoo.study.plan import plan_runs
from ssl_zoo.study.record import RunFolder


def test_a_long_legend_does_not_shrink_the_plot(tmp_path):
    study = tiny_study(tmp_path)
    few = compare_study(study, plan_runs(study), RunFolder(tmp_path / "runs"), {}, "")
    many = replace(few, rows=[*few.rows] * 8)
    heights = [_plot_height(accuracy_against_compute(comparison, "knn5", "5-NN")) for comparison in (few, many)]
    assert heights[1] > 0.9 * heights[0]


def _plot_height(svg: bytes) -> float:
    """Height of the background of the axes, the second filled area of a figure, in points."""
    outline = re.findall(r'<g id="patch_2">\s*<path d="([^"]*)"', svg.decode())[0]
    heights = [float(point.split()[1]) for point in re.findall(r"[ML] ([-\d.]+ [-\d.]+)", outline)]
    return max(heights) - min(heights)
