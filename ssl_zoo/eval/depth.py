"""Monocular depth by a linear probe on patch tokens: RMSE, absolute relative error, and delta_1 accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.maps import MapSet
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.eval.dense import DenseConfig, DenseEvaluator, Measure
from ssl_zoo.machine import float64_device
from ssl_zoo.settings import setting

_MIN_DEPTH = 0.001  # of the bins and of predictions, as in DINOv2
_UPSAMPLING = 4  # of the logits before they become depths, as in DINOv2
_DELTA = 1.25  # delta_1: largest ratio of prediction and truth that counts as correct


@dataclass
class DepthConfig(DenseConfig):
    """Linear depth estimation on patch tokens. Train images are not cropped, since a crop would change the scale."""

    maps: str = setting("depth", "which of the source's kinds of maps")
    num_bins: int = setting(256, "equally spaced depths, whose mean under the outputs is predicted", at_least=2)


@EVALUATORS.register("depth", DepthConfig)
class Depth(DenseEvaluator):
    """Depths of pixels from patch tokens by a linear probe: RMSE, absolute relative error and delta_1, per image."""

    config: DepthConfig

    def fits(self, map_set: MapSet) -> bool:
        return map_set.max_depth > 0

    def num_outputs(self, map_set: MapSet) -> int:
        return self.config.num_bins

    def loss(
        self, outputs: Float[Tensor, "B bins h w"], maps: Float[Tensor, "B H W"], map_set: MapSet
    ) -> tuple[Tensor, Tensor]:
        """Return the scale-invariant loss summed over images, and the number of images with a known pixel.

        sqrt(mean(g^2) - 0.85 mean(g)^2) of the differences g of log depths (AdaBins, arXiv 2011.14141, eq. 5, without
        its factor 10). Differs from the reference: per image as in Eigen et al., arXiv 1406.2283, so that the loss of a
        step is a mean over images.
        """
        is_known = maps > 0
        difference = (self.predicted(outputs, maps, map_set).log() - maps.clamp(min=_MIN_DEPTH).log()) * is_known
        num_known = is_known.sum(dim=(1, 2))
        square, mean = (d.sum(dim=(1, 2)) / num_known.clamp(min=1) for d in (difference.square(), difference))
        losses = (square - 0.85 * mean.square() + 1e-6).sqrt()
        return (losses * (num_known > 0)).sum(), (num_known > 0).sum()

    def predicted(
        self, outputs: Float[Tensor, "B bins h w"], maps: Float[Tensor, "B H W"], map_set: MapSet
    ) -> Float[Tensor, "B H W"]:
        """Return depths at the pixels of the maps: means of the bins, weighted by the rectified outputs plus 0.1."""
        grid = [_UPSAMPLING * side for side in outputs.shape[-2:]]
        weights = F.interpolate(outputs, grid, mode="bilinear", align_corners=False).relu() + 0.1
        bins = torch.linspace(_MIN_DEPTH, map_set.max_depth, self.config.num_bins, device=outputs.device)
        depths = torch.einsum("bchw,c->bhw", weights, bins) / weights.sum(dim=1)
        return F.interpolate(depths[:, None], maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def sums(
        self, outputs: Float[Tensor, "B bins h w"], maps: Float[Tensor, "B H W"], map_set: MapSet
    ) -> Float[Tensor, "4"]:
        """Return the sums over images of RMSE, absolute relative error and delta_1, and the number of images."""
        device = float64_device(maps.device)
        predicted = self.predicted(outputs, maps, map_set).clamp(min=_MIN_DEPTH, max=map_set.max_depth)
        predicted, truth = predicted.to(device, torch.float64), maps.to(device, torch.float64)
        is_known = truth > 0
        has_pixels = is_known.any(dim=(1, 2))
        safe = torch.where(is_known, truth, 1.0)
        error = predicted - truth
        is_close = torch.maximum(predicted / safe, safe / predicted) < _DELTA
        per_pixel = torch.stack([error.square(), error.abs() / safe, is_close.double()])
        of_images = (per_pixel * is_known).sum(dim=(2, 3)) / is_known.sum(dim=(1, 2)).clamp(min=1)
        rmse, relative, delta = of_images
        return torch.stack([rmse.sqrt().sum(), relative.sum(), delta.sum(), has_pixels.sum()])

    def measures(self, sums: Float[Tensor, "4"]) -> Mapping[str, Measure]:
        rmse, relative, delta = (sums[:3] / sums[3]).tolist()
        return {
            "depth_rmse": Measure(rmse, False),
            "depth_abs_rel": Measure(relative, False),
            "depth_delta1": Measure(delta, True),
        }
