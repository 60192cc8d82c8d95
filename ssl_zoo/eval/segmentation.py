"""Semantic segmentation by a linear probe on patch tokens: mean intersection over union and pixel accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ssl_zoo.data.maps import IGNORED, MapSet
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.dense import DenseConfig, DenseEvaluator, Measure
from ssl_zoo.machine import float64_device
from ssl_zoo.settings import setting


@dataclass
class SegmentationConfig(DenseConfig):
    """Linear segmentation of patch tokens; crops and flips of train images as in mmsegmentation's recipes."""

    maps: str = setting("segmentation", "which of the source's kinds of maps")
    crop_scale: list[float] = setting(
        [0.5, 1.0], "area of random crops of train images, [low, high]; [1, 1]: no crop", length=2, above=0, at_most=1
    )


@EVALUATORS.register("segmentation", SegmentationConfig)
class Segmentation(DenseEvaluator):
    """Classes of pixels from patch tokens by a linear probe: mIoU and pixel accuracy over all test pixels."""

    config: SegmentationConfig

    def fits(self, map_set: MapSet) -> bool:
        return map_set.num_classes > 0

    def num_outputs(self, map_set: MapSet) -> int:
        return map_set.num_classes

    def loss(
        self, outputs: Float[Tensor, "B classes h w"], maps: UInt8[Tensor, "B H W"], map_set: MapSet
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of logits upsampled to the pixels, summed over known pixels, and their number."""
        loss = F.cross_entropy(_upsampled(outputs, maps), maps.long(), ignore_index=IGNORED, reduction="sum")
        return loss, (maps != IGNORED).sum()

    def sums(
        self, outputs: Float[Tensor, "B classes h w"], maps: UInt8[Tensor, "B H W"], map_set: MapSet
    ) -> Float[Tensor, "classes classes"]:
        """Count the known pixels of each class (rows) that are predicted as each class (columns)."""
        predicted = _upsampled(outputs, maps).argmax(dim=1)
        is_known = maps != IGNORED
        pairs = map_set.num_classes * maps[is_known].long() + predicted[is_known]
        counts = pairs.bincount(minlength=map_set.num_classes**2)
        return counts.unflatten(0, (map_set.num_classes, -1)).to(float64_device(maps.device), torch.float64)

    def measures(self, sums: Float[Tensor, "classes classes"]) -> Mapping[str, Measure]:
        """Return the mean IoU over the classes that are present or predicted, and the fraction of correct pixels."""
        correct, union = sums.diag(), sums.sum(dim=0) + sums.sum(dim=1) - sums.diag()
        miou = (correct / union)[union > 0].mean()
        pixel_accuracy = correct.sum() / sums.sum()
        return {
            "segmentation_miou": Measure(miou.item(), True),
            "segmentation_accuracy": Measure(pixel_accuracy.item(), True),
        }


def _upsampled(outputs: Float[Tensor, "B C h w"], maps: UInt8[Tensor, "B H W"]) -> Float[Tensor, "B C H W"]:
    return F.interpolate(outputs, maps.shape[-2:], mode="bilinear", align_corners=False)
