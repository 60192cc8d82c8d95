"""Pixels as targets: reconstruct the masked patches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks.base import Masks
from ssl_zoo.nn import ViT, patchify, scatter_back, take, unpatchify
from ssl_zoo.plotting import Column, Figure, Swatch, on_grey, patch_set
from ssl_zoo.settings import setting
from ssl_zoo.targets.base import TARGETS, Target, TargetConfig

_BORROWED = (
    "Brightness and contrast of each predicted patch are borrowed from the image: the targets are normalised per patch "
    "(targets.normalize=true), so that the network predicts neither. What it predicts is the structure within a patch."
)


@dataclass
class PixelsConfig(TargetConfig):
    """Pixel targets."""

    normalize: bool = setting(True, "subtract each patch's mean and divide by its standard deviation (MAE)")


@TARGETS.register("pixels", PixelsConfig)
class Pixels(Target):
    """The pixels of each target patch in (y, x, colour) order, normalised per patch on request."""

    def __init__(self, config: PixelsConfig, encoder: ViT) -> None:
        super().__init__()
        self.config, self.patch_size, self.grid = config, encoder.patch_size, encoder.grid
        self.dim = encoder.config.in_channels * encoder.patch_size**2

    @torch.no_grad()
    def forward(self, batch: Batch, masks: Masks, encoder: ViT) -> Float[Tensor, "B M T dim"]:
        pixels = take(patchify(batch.views["image"].float(), self.patch_size), masks.targets)
        if self.config.normalize:
            mean, deviation = _statistics(pixels)
            pixels = (pixels - mean) / deviation
        return pixels

    @torch.no_grad()
    def visualize(
        self, predictions: Float[Tensor, "B M T dim"], batch: Batch, masks: Masks, encoder: ViT
    ) -> Mapping[str, Figure]:
        """Show ``reconstructions``: the image, its visible patches, and these with the predicted patches.

        Normalised predictions have neither brightness nor contrast of a patch; those of the true patch are used.
        """
        patches = patchify(batch.views["image"].float(), self.patch_size)
        if self.config.normalize:
            mean, deviation = _statistics(take(patches, masks.targets))
            predictions = predictions * deviation + mean
        predicted = masks.targets.flatten(1)
        filled = unpatchify(scatter_back(predictions.flatten(1, 2), predicted, patches), self.grid, self.patch_size)
        visible = patch_set(masks.context.flatten(1), patches.shape[1])
        known = visible | patch_set(predicted, patches.shape[1])
        image, reconstructed = batch.pixels("image"), batch.pixels("image", filled)
        columns = [
            Column("image", image),
            Column("visible patches: what the encoder sees", on_grey(image, visible, self.grid)),
            Column("visible and predicted patches", on_grey(reconstructed, known, self.grid)),
        ]
        title = "Reconstructions: pixels of the masked patches, predicted from the visible ones"
        legend = [Swatch("patches that are not visible, or not predicted")]
        return {"reconstructions": Figure(title, columns, legend, _BORROWED if self.config.normalize else "")}


def _statistics(pixels: Float[Tensor, "*B P"]) -> tuple[Float[Tensor, "*B 1"], Float[Tensor, "*B 1"]]:
    """Return mean and standard deviation of each patch, as MAE takes them (arXiv 2111.06377, facebookresearch/mae)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)  # unbiased
    return mean, (variance + 1e-6).sqrt()
