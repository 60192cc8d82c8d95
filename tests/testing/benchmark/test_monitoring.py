"""The cost of monitoring, as a share of a training."""

import pytest

from ssl_zoo.testing.benchmark.monitoring import MonitoringCost


@pytest.mark.parametrize(("images_every", "cost"), [(100, 0.001), (0, 0.0005)])
def test_the_share_is_that_of_a_long_run_with_its_interval_of_visualizations(images_every: int, cost: float) -> None:
    measured = MonitoringCost([0.1], [0.13], records=0.0005, images=0.05, images_every=images_every)
    assert measured.share == pytest.approx(cost / (0.1 + cost))
