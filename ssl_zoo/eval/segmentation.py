"""Semantic segmentation by a linear probe on patch tokens: mean intersection over union and pixel accuracy."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data.maps import IGNORED, MapSet
from ssl_zoo.data.resample import resize_crop
from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.dense import DenseConfig, DenseEvaluator, Encoding, Measure
from ssl_zoo.eval.dense_heads import Heads
from ssl_zoo.eval.ranks import rank_and_size
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.eval.windows import averaged, corners, covering_size, cut
from ssl_zoo.machine import float64_device
from ssl_zoo.settings import setting

_WINDOWS_PER_IMAGE = 2  # of photographs of aspect 4:3 with strides of two thirds; for costs


@dataclass
class SegmentationConfig(DenseConfig):
    """Linear segmentation of patch tokens; crops and flips of train images as in mmsegmentation's recipes."""

    maps: str = setting("segmentation", "which of the source's kinds of maps")
    crop_scale: list[float] = setting(
        [0.5, 1.0], "area of random crops of train images, [low, high]; [1, 1]: no crop", length=2, above=0, at_most=1
    )
    sliding: bool = setting(False, "score whole images by sliding windows, instead of the central crop of each")
    stride: float = setting(
        2 / 3, "distance of sliding windows as a fraction of their side: 341 of 512 pixels", above=0, at_most=1
    )


@EVALUATORS.register("segmentation", SegmentationConfig)
class Segmentation(DenseEvaluator):
    """Classes of pixels from patch tokens by a linear probe: mIoU and pixel accuracy over all test pixels."""

    config: SegmentationConfig

    def protocol(self, model: EvaluatedModel, **varied: object) -> dict[str, object]:
        protocol = super().protocol(model, **varied)
        if not self.config.sliding:  # hashes of protocols of earlier versions, which lacked windows, stay valid
            del protocol["sliding"], protocol["stride"]
        return protocol

    def cost(self, workload: Workload) -> Cost:
        cost = super().cost(workload)
        if not self.config.sliding:
            return cost
        how = f"{cost.how}; {_WINDOWS_PER_IMAGE} windows per scored image"
        return replace(cost, encoded_images=cost.encoded_images + (_WINDOWS_PER_IMAGE - 1) * workload.num_test, how=how)

    def fits(self, map_set: MapSet) -> bool:
        return map_set.num_classes > 0

    def num_outputs(self, map_set: MapSet) -> int:
        return map_set.num_classes

    def outputs(
        self, encoding: Encoding, heads: Heads, split: EvaluationSplit, index: Int[Tensor, "n"]
    ) -> Iterator[tuple[Iterable[Float[Tensor, "B classes h w"]], UInt8[Tensor, "B H W"]]]:
        if not self.config.sliding:
            yield from super().outputs(encoding, heads, split, index)
            return
        data, pairs, (rank, world_size) = split.data(), split.pairs(self.config.maps), rank_and_size()
        num_scored = 0
        for sample in index[rank::world_size]:
            for image, classes in pairs([int(sample)]).values():  # none where it can't be decoded
                size = covering_size(*image.shape[1:], data.size)
                whole = resize_crop(image, (0, 0, *image.shape[1:]), size, "bicubic")[None]
                [whole] = data.normalize(data.transformed(whole, sample[None]))
                places = corners(size, data.size, self.config.stride)
                windows = cut(whole, places, data.size).split(self.config.batch_size)
                tokens = heads.standardized(torch.cat([encoding.tokens(part) for part in windows]))
                num_scored += 1
                yield map(partial(averaged, places=places, window=data.size, size=size), heads(tokens)), classes[None]
        if num_scored == 0:  # counts of 0 for the sum over ranks
            nothing = torch.zeros(1, pairs.map_set.num_classes, 1, 1, device=encoding.model.device)
            yield [nothing] * heads.num_heads, pairs.map_set.unknown.expand(1, 1, 1)

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
