"""Collapse: the metrics that show it, and the limits beyond which the engine's alarm counts a run as collapsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import cosine_between_images, mean_std, normalized_entropy

_MEASURED_IMAGES = 16  # of a micro-batch, for the metrics of every step: enough pairs at each patch

# The groups in which loggers show the metrics of this module, and those that methods report beside them.
METRIC_GROUPS: Mapping[str, str] = {
    **dict.fromkeys(("target_std", "target_cosine", "prediction_std", "prediction_cosine"), "health"),
    **dict.fromkeys(("teacher_entropy", "prototype_entropy"), "health"),
    **dict.fromkeys(("visible_patches", "target_patches"), "masks"),
}


@dataclass(frozen=True)
class Limit:
    """A bound of a metric; a run beyond it is suspected of collapse.

    Attributes:
        above: suspicious above the bound; otherwise below it.
        finding: what a value beyond the bound means.
        remedy: what to change, with the keys.
    """

    metric: str
    bound: float
    above: bool
    finding: str
    remedy: str

    def is_beyond(self, value: float) -> bool:
        return value > self.bound if self.above else value < self.bound


_FEATURE_REMEDY = (
    "Check that no gradient reaches the targets; raise targets.ema.momentum, lower optim.lr, warm up longer, or try "
    "targets.normalization=instance, which removes what all patches of an image share"
)
_ONLINE_REMEDY = (
    "Nothing but a regularizer keeps an encoder that makes its own targets from this: add regularizer=sigreg (or "
    "vicreg, visreg), raise regularizer.weight, set targets.stop_gradient=true, or choose targets=teacher"
)


def feature_limits(remedy: str) -> Sequence[Limit]:
    """Return the limits of the metrics of targets in ``feature_metrics``."""
    return (
        # Random networks have a cosine of 0.95.
        Limit("target_cosine", 0.99, True, "all images have nearly the same targets", remedy),
        # For targets of zeros, whose cosine is 0.
        Limit("target_std", 0.001, False, "all targets are nearly the same", remedy),
    )


FEATURE_LIMITS = feature_limits(_FEATURE_REMEDY)
ONLINE_FEATURE_LIMITS = feature_limits(_ONLINE_REMEDY)

_DISTRIBUTION_REMEDY = (
    "Check centering and temperatures: a teacher that is too warm, or centered without sharpening, becomes uniform; "
    "one that is too cold, or not centered, assigns every image to one prototype. Else lower optim.lr or raise "
    "method.ema.momentum"
)
DISTRIBUTION_LIMITS: Sequence[Limit] = (
    Limit("teacher_entropy", 0.99, True, "the teacher's distributions are uniform", _DISTRIBUTION_REMEDY),
    Limit("prototype_entropy", 0.05, False, "the teacher assigns all images to one prototype", _DISTRIBUTION_REMEDY),
)


@torch.no_grad()
def feature_metrics(
    predictions: Float[Tensor, "B C pairs T D"], targets: Float[Tensor, "B M T D"], masks: Masks, num_patches: int
) -> Mapping[str, Float[Tensor, ""]]:
    """Measure how predictions and targets differ between images, and count visible and target patches.

    The first context of the first images of the batch is measured.

    Args:
        predictions: in the order of ``masks.paired``.
    """
    some = slice(0, _MEASURED_IMAGES)
    patches, targets = (masks.paired(values)[some, 0].flatten(1, 2) for values in (masks.targets, targets))
    predictions = predictions.detach()[some, 0].flatten(1, 2).float()
    return {
        "target_std": mean_std(targets),
        "target_cosine": cosine_between_images(targets, patches, num_patches),
        "prediction_std": mean_std(predictions),
        "prediction_cosine": cosine_between_images(predictions, patches, num_patches),
        "visible_patches": torch.full((), float(masks.context.shape[-1]), device=targets.device),
        "target_patches": torch.full((), float(masks.targets.shape[-1]), device=targets.device),
    }


@torch.no_grad()
def distribution_metrics(probabilities: Float[Tensor, "V B K"]) -> Mapping[str, Float[Tensor, ""]]:
    """Measure the entropy of a teacher's distributions and of their mean over the batch, which collapse in two ways."""
    return {
        "teacher_entropy": normalized_entropy(probabilities),
        "prototype_entropy": normalized_entropy(probabilities.mean(dim=(0, 1))),
    }
