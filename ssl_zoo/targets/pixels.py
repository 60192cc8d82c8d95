"""Pixels as targets: reconstruct what was hidden."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT, patchify, take
from ssl_zoo.registry import setting
from ssl_zoo.targets.base import TARGETS, Target, TargetConfig


@dataclass
class PixelsConfig(TargetConfig):
    """Pixel targets."""

    normalize: bool = setting(True, "subtract each patch's mean and divide by its standard deviation (MAE)")


@TARGETS.register("pixels", PixelsConfig)
class Pixels(Target):
    """The pixels of each target patch in (y, x, colour) order, normalised per patch on request."""

    def __init__(self, config: PixelsConfig, encoder: ViT) -> None:
        super().__init__()
        self.config, self.patch_size = config, encoder.patch_size
        self.dim = 3 * encoder.patch_size**2

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"], masks: Masks) -> Float[Tensor, "B M T dim"]:
        pixels = take(patchify(images.float(), self.patch_size), masks.targets)
        if self.config.normalize:
            # Unbiased variance and eps inside the root: MAE (arXiv 2111.06377), facebookresearch/mae models_mae.py.
            variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
            pixels = (pixels - mean) * (variance + 1e-6).rsqrt()
        return pixels
