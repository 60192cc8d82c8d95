"""Region similarity J and contour accuracy F of DAVIS (Perazzi et al., CVPR 2016, section 4), of boolean masks.

F follows the definition of its code for pixels: two boundary pixels match if they are within a disk of a radius of
0.8 % of the image's diagonal.
"""

import math

import numpy
from scipy.ndimage import distance_transform_edt

_TOLERANCE = 0.008  # of the diagonal


def region_similarity(predicted: numpy.ndarray, truth: numpy.ndarray) -> float:
    """Return the intersection over union of two masks; 1 where both are empty."""
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def contour_accuracy(predicted: numpy.ndarray, truth: numpy.ndarray) -> float:
    """Return the F-measure of precision and recall of boundary pixels; 1 where both masks have no boundary."""
    radius = math.ceil(_TOLERANCE * math.hypot(*truth.shape))
    found, wanted = boundary(predicted), boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision, recall = (_near(a, b, radius).sum() / a.sum() for a, b in ((found, wanted), (wanted, found)))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: numpy.ndarray) -> numpy.ndarray:
    """Return the pixels that differ from the right, lower or lower right one, which the last row and column repeat."""
    padded = numpy.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _near(pixels: numpy.ndarray, others: numpy.ndarray, radius: int) -> numpy.ndarray:
    """Return those pixels that have one of the others within a distance."""
    return pixels & (distance_transform_edt(~others) <= radius)
