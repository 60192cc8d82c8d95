"""Statistics over seeds and rows of run directories."""

import json
from pathlib import Path

import pytest

from ssl_zoo.study.comparison import Attempt, Comparison, Row, Summary
from ssl_zoo.study.record import RunRecord


def test_a_summary_has_the_sample_deviation_of_the_known_values():
    summary = Summary.of([0.2, None, 0.4, 0.6])
    assert (summary.mean, summary.deviation, summary.count) == (pytest.approx(0.4), pytest.approx(0.2), 3)
    assert Summary.of([0.5]) == Summary(0.5, None, 1)
    assert Summary.of([None]) is None


def row(title: str, initial_scores: dict[int, float], *, num_steps: int = 4) -> Row:
    """A row of runs at step 4, with the given initial score per seed."""
    attempts = []
    for seed, score in initial_scores.items():
        lines = [{"step": 0, "knn5": score, "knn5_random_init": score}, {"step": 4, "knn5": 0.5 + seed / 10}]
        record = RunRecord(Path(), {"num_steps": num_steps}, json.loads(json.dumps(lines)), 4)
        attempts.append(Attempt(seed, Path(), record, None, num_steps))
    return Row(title, attempts, None, None, {})


def baselines(*rows: Row):
    return [(b.title, b.scores["knn5"]) for b in Comparison("", "", "", "", ["knn5"], [], rows, "").baselines]


def test_rows_with_equal_initial_scores_share_a_baseline():
    one, two, other = row("one", {0: 0.1, 1: 0.2}), row("two", {1: 0.2}), row("other", {0: 0.1, 1: 0.4})
    [(title, summary)] = baselines(one, two)
    assert (title, summary.mean, summary.count) == ("random init", pytest.approx(0.15), 2)
    assert [title for title, _ in baselines(one, other, two)] == ["random init of one, two", "random init of other"]
    assert baselines(row("nothing", {})) == []


def test_a_run_has_no_score_until_it_is_probed_after_a_step():
    initial = {"step": 0, "knn5": 0.1, "knn5_random_init": 0.1}
    record = RunRecord(Path(), {"num_steps": 4}, [initial, {"step": 2, "loss": 0.3}], 2)
    assert record.score("knn5") is None and record.baseline("knn5") == 0.1
    assert RunRecord(Path(), {}, [initial, {"step": 4, "knn5": 0.2}], 4).score("knn5") == 0.2


def test_a_mean_is_over_the_finished_runs_if_there_are_any():
    done, half = row("a", {0: 0.1, 1: 0.1}), row("a", {2: 0.1}, num_steps=9)
    both = Row("a", [*done.attempts, *half.attempts], None, None, {})
    assert both.score("knn5") == Summary(pytest.approx(0.55), pytest.approx(0.0707, abs=1e-4), 2)
    assert not both.is_finished and [attempt.state for attempt in both.attempts][-1] == "at step 4 of 9"
    assert half.score("knn5").mean == pytest.approx(0.7)
