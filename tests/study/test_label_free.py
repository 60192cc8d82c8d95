"""Rank correlations of label-free measures with scores over runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_zoo.study.label_free import rank_correlations
from ssl_zoo.study.record import RunRecord


def comparison(values: list[dict[str, float]], unfinished: int = 0) -> SimpleNamespace:
    records = [RunRecord(Path("run"), {}, [{"step": 8, **line}], 8) for line in values]
    attempts = [
        SimpleNamespace(record=record, is_finished=number >= unfinished) for number, record in enumerate(records)
    ]
    return SimpleNamespace(attempts=[(None, attempt) for attempt in attempts])


def test_a_measure_that_orders_runs_as_a_score_correlates_by_one_and_one_that_reverses_them_by_minus_one():
    runs = [
        {"rankme": x**3, "mean_cosine": -x, "feature_std": 1.0, "knn20": x, "logistic": y}
        for x, y in enumerate([3, 1, 2, 5, 4])
    ]
    found = {
        name: (count, values) for name, count, values in rank_correlations(comparison(runs), ["knn20", "logistic"])
    }
    assert found["rankme"] == (5, [pytest.approx(1.0), pytest.approx(0.6)])
    assert found["mean_cosine"] == (5, [pytest.approx(-1.0), pytest.approx(-0.6)])
    assert found["feature_std"] == (5, [None, None])  # all runs tie


def test_the_scaled_loss_of_lejepa_counts_for_the_runs_that_have_it():
    runs = [{"rankme": x, "scaled_loss": -x, "knn20": x} for x in range(5)] + [{"rankme": 9, "knn20": 9}]
    found = {name: (count, values) for name, count, values in rank_correlations(comparison(runs), ["knn20"])}
    assert found == {"rankme": (6, [pytest.approx(1.0)]), "scaled_loss": (5, [pytest.approx(-1.0)])}


def test_fewer_than_five_finished_runs_are_no_evidence():
    runs = [{"rankme": x, "knn20": x} for x in range(5)]
    assert list(rank_correlations(comparison(runs, unfinished=1), ["knn20"])) == []
