"""Preprocessing of images for a trained encoder, equal to that of evaluations."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ssl_zoo.data.batch import Normalize
from ssl_zoo.data.decode import CorruptImage, PixelFormat, decode
from ssl_zoo.data.sources.imagefolder import LimitedConfig
from ssl_zoo.data.transforms import evaluation_view
from ssl_zoo.interop.manifest import Preprocessing

ImageLike: TypeAlias = str | Path | Image.Image | numpy.ndarray | Tensor


class Transform:
    """Render images as the evaluators do: centre crop, antialiased bicubic resize, normalisation.

    The shorter side of an image larger than ``size`` is resized to 256/224 of it and the centre is cropped. An image
    that is no larger is shown whole. The result for a file equals that of ``EvaluationData`` bit for bit.

    Attributes:
        size: height and width in pixels of the result.
        mean, std: per channel, for pixels in 0..1.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.size = (preprocessing.size[0], preprocessing.size[1])
        self.mean, self.std = tuple(preprocessing.mean), tuple(preprocessing.std)
        self._normalize = Normalize(self.mean, self.std)
        stretch = None if preprocessing.intensity_range is None else tuple(preprocessing.intensity_range)
        self._format = PixelFormat(preprocessing.channels, stretch, tuple(preprocessing.background))

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Float[Tensor, "*B C H W"]:
        """Return one normalised image (C, H, W), or a batch (B, C, H, W) for a list or a batched tensor.

        Args:
            images: a path, a Pillow image, an array (H, W, 3) or a tensor (C, H, W) of uint8, or a list of these. A
                tensor may also have shape (B, C, H, W).

        Raises:
            ValueError: pixels of another type or shape, or a file that can't be decoded.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return self._normalize(evaluation_view(_checked(images, self.preprocessing.channels), self.size))
        if not isinstance(images, Sequence) or isinstance(images, str):
            return self._normalize(evaluation_view(self.pixels(images), self.size))
        if not len(images):
            raise ValueError("no images were given; pass at least one path, image or tensor")
        return self._normalize(torch.stack([evaluation_view(self.pixels(image), self.size) for image in images]))

    def pixels(self, image: ImageLike) -> UInt8[Tensor, "C H W"]:
        """Return the pixels of one image before it is resized, decoded by the rules of the data sources.

        Raises:
            ValueError: as for a call.
        """
        if isinstance(image, (str, Path)):
            return _decoded(Path(image).read_bytes(), str(image), self._format)
        if isinstance(image, Image.Image):
            return _of_pillow(image, self._format)
        if isinstance(image, numpy.ndarray):
            if image.ndim != 3 or image.dtype != numpy.uint8:
                raise ValueError(f"an array of {image.dtype} and shape {image.shape}; give uint8 of (height, width, 3)")
            return _checked(torch.from_numpy(image.copy()).permute(2, 0, 1), self.preprocessing.channels)
        if isinstance(image, Tensor):
            return _checked(image, self.preprocessing.channels)
        raise ValueError(f"a {type(image).__name__} is no image; give a path, a Pillow image, an array or a tensor")

    def __repr__(self) -> str:
        height, width = self.size
        return f"Transform({height}x{width} px, mean={self.mean}, std={self.std})"


def _of_pillow(image: Image.Image, wanted: PixelFormat) -> UInt8[Tensor, "C H W"]:
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and wanted.channels == 3 and "transparency" not in image.info:
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    # Other modes go through a file in memory, so that palettes, transparency and deep pixels become what they are when
    # a data source reads them.
    buffer = io.BytesIO()
    image.save(buffer, format="TIFF")
    return _decoded(buffer.getvalue(), f"a Pillow image of mode {image.mode}", wanted)


def _decoded(data: bytes, name: str, wanted: PixelFormat) -> UInt8[Tensor, "C H W"]:
    try:
        return decode(data, name, LimitedConfig().limits, wanted)
    except CorruptImage as error:
        raise ValueError(str(error)) from error


def _checked(pixels: Tensor, channels: int) -> UInt8[Tensor, "*B C H W"]:
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3] != channels:
        raise ValueError(
            f"a tensor of {str(pixels.dtype).removeprefix('torch.')} and shape {list(pixels.shape)}; give uint8 pixels "
            f"of ({channels}, height, width). Images that the transform has made go to embed() and patches()"
        )
    return pixels
