import math

import numpy
import pytest
from scipy.ndimage import gaussian_filter

from ssl_zoo.eval.video_measures import boundary, contour_accuracy, region_similarity


def blobs(seed: int, size: tuple[int, int] = (24, 30)) -> numpy.ndarray:
    return gaussian_filter(numpy.random.default_rng(seed).normal(size=size), 3) > 0.02


def slow_boundary(mask: numpy.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            if any(mask[y, x] != mask[place] for place in ((y, right), (below, x), (below, right))):
                found.add((y, x))
    return found


def slow_contour_accuracy(predicted: numpy.ndarray, truth: numpy.ndarray) -> float:
    """Precision and recall of boundary pixels, pair by pair."""
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    found, wanted = slow_boundary(predicted), slow_boundary(truth)

    def fraction(pixels: set, others: set) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in pixels]
        return sum(near) / len(near)

    precision, recall = fraction(found, wanted), fraction(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(("size", "seeds"), [((24, 30), range(3)), ((90, 100), [2])])
def test_contour_accuracy_is_that_of_a_slow_restatement(size, seeds):
    for seed in seeds:
        predicted, truth = blobs(seed, size), blobs(seed + 50, size)
        if seed == 2:
            truth = numpy.roll(predicted, 2, axis=1)
        assert {*zip(*numpy.nonzero(boundary(truth)), strict=True)} == slow_boundary(truth)
        assert contour_accuracy(predicted, truth) == pytest.approx(slow_contour_accuracy(predicted, truth), abs=1e-12)


def test_equal_masks_score_1_and_empty_ones_only_against_empty_ones():
    mask, empty = blobs(0), numpy.zeros((24, 30), dtype=bool)
    for measure in (region_similarity, contour_accuracy):
        assert measure(mask, mask) == measure(empty, empty) == 1
        assert measure(mask, empty) == measure(empty, mask) == 0


def test_region_similarity_is_the_intersection_over_the_union():
    predicted, truth = numpy.zeros((2, 10, 10), dtype=bool)
    predicted[:4], truth[2:8] = True, True
    assert region_similarity(predicted, truth) == 20 / 80


def test_a_shift_within_the_tolerance_costs_no_contour_accuracy():
    truth = numpy.zeros((400, 300), dtype=bool)  # a diagonal of 500 pixels: a tolerance of 4
    truth[100:200, 100:200] = True
    assert contour_accuracy(numpy.roll(truth, 4, axis=1), truth) == 1
    assert contour_accuracy(numpy.roll(truth, 5, axis=1), truth) < 1
