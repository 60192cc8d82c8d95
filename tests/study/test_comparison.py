"""Statistics over seeds, and rows of run directories."""

import pytest

from ssl_zoo.study.comparison import Summary


def test_a_summary_has_the_sample_deviation_over_what_is_there():
    summary = Summary.of([0.2, None, 0.4, 0.6])
    assert (summary.mean, summary.deviation, summary.count) == (pytest.approx(0.4), pytest.approx(0.2), 3)
    assert Summary.of([0.5]) == Summary(0.5, None, 1)
    assert Summary.of([None]) is None
