"""What figures are made of: an encoder, and images as it sees them."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssl_zoo.data.batch import Normalize
from ssl_zoo.data.captions import caption
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.sources import Source
from ssl_zoo.data.transforms import evaluation_view
from ssl_zoo.nn import ViT

_IMAGES_AT_ONCE = 8  # in a forward pass: tokens of large images take memory


@dataclass(frozen=True)
class Rendering:
    """How images become the encoder's input: as for evaluators.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, for pixels in 0..1.
    """

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Sequence[UInt8[Tensor, "C _ _"]]) -> Float[Tensor, "B C H W"]:
        """Return the normalised views of images of any size."""
        return Normalize(self.mean, self.std)(torch.stack([evaluation_view(image, self.size) for image in images]))

    def pixels(self, images: Sequence[UInt8[Tensor, "C _ _"]]) -> Float[Tensor, "B C H W"]:
        """Return the same views in 0..1."""
        return torch.stack([evaluation_view(image, self.size) for image in images]).float() / 255


@dataclass(frozen=True)
class Subject:
    """An encoder in evaluation mode and the images that it is shown.

    Attributes:
        samples: ids of the images in ``source``.
        images: decoded, of any size.
        autocast: precision context in which the k-NN evaluator extracts features; maps are computed in float32.
    """

    encoder: ViT
    rendering: Rendering
    source: Source
    samples: Sequence[int]
    images: Sequence[UInt8[Tensor, "C _ _"]]
    device: torch.device
    autocast: AbstractContextManager

    @cached_property
    def names(self) -> list[str]:
        """Names of the images, with their labels where these are known."""
        return [caption(self.source, sample) for sample in self.samples]

    @cached_property
    def views(self) -> Float[Tensor, "B C H W"]:
        """What the encoder sees: normalised, on its device."""
        return self.rendering(self.images).to(self.device)

    @cached_property
    def pixels(self) -> Float[Tensor, "B C H W"]:
        """The views in 0..1."""
        return self.rendering.pixels(self.images)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.encoder.config.grid_of(self.rendering.size)

    @torch.no_grad()
    def patch_features(self, encoder: ViT | None = None) -> Float[Tensor, "B N D"]:
        """Return the tokens of all patches after the final norm, on the CPU, without prefix tokens.

        Args:
            encoder: another one of the same sizes.
        """
        encoder = encoder or self.encoder
        return torch.cat([encoder.patches(encoder(part)).cpu() for part in self.views.split(_IMAGES_AT_ONCE)])


def choose_images(
    source: Source, count: int, *, must_decode: bool = False
) -> tuple[list[int], list[UInt8[Tensor, "C _ _"]]]:
    """Return ids and pixels of images of a source that can be decoded, spread evenly over it.

    Sources are often sorted by class.

    Args:
        must_decode: take the first images, and raise the error of one that can't be decoded, instead of naming it on
            stderr and taking another.

    Raises:
        CorruptImage: none can be decoded, or ``must_decode``.
    """
    samples, images, first_error = [], [], None
    spread = range(0, len(source), max(1, len(source) // count))
    for sample in range(len(source)) if must_decode else dict.fromkeys([*spread, *range(len(source))]):
        if len(images) == count:
            break
        try:
            images.append(source.image(sample))
            samples.append(sample)
        except CorruptImage as error:
            if must_decode:
                raise
            first_error = first_error or error
            print(f"left out: {error}", file=sys.stderr)
    if first_error is not None and not images:
        raise first_error
    return samples, images
