"""Corrupted test images in the manner of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), made on reading.

Strengths are those of ImageNet-C. Differs from the reference: lengths of blurs shrink with the power 2/3 of the image's
side, which is 224 pixels there, so that images of 32 pixels are blurred about as in CIFAR-10-C; the rim of a disc is
antialiased by its area.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import Settings, setting

_SIDE = 224  # pixels, of the images of ImageNet-C
Pixels = Float[Tensor, "C H W"]  # in 0..1
_Corrupt = Callable[[Pixels, int, torch.Generator], Pixels]  # severity is 0..4 here


def _gaussian_noise(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    return image + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * torch.randn(image.shape, generator=generator)


def _shot_noise(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    photons = (60, 25, 12, 5, 3)[level]  # of a white pixel
    return torch.poisson(image * photons, generator) / photons


def _impulse_noise(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    """Set channels of pixels to black or white, each equally often."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    chosen = torch.rand(image.shape, generator=generator)
    white = (torch.rand(image.shape, generator=generator) < 0.5).float()
    return torch.where(chosen < amount, white, image)


def _defocus_blur(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    radius = (3, 4, 6, 8, 10)[level] * _scale(image)
    offsets = _offsets(radius + 0.5)
    distance = (offsets[:, None].square() + offsets.square()).sqrt()
    return _convolve(image, (radius + 0.5 - distance).clamp(0, 1))


def _gaussian_blur(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    sigma = max(0.4, (1, 2, 3, 4, 6)[level] * _scale(image))  # a narrower kernel changes nothing
    line = torch.exp(-0.5 * (_offsets(4 * sigma) / sigma).square())
    return _convolve(image, line[:, None] * line)


def _motion_blur(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    """Blur along a line of random direction within 45 degrees of the horizontal, with a tail to one side."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    radius, sigma = radius * _scale(image), sigma * _scale(image)
    angle = math.radians(90 * float(torch.rand((), generator=generator)) - 45)
    along = torch.arange(0, 2 * radius, 0.25)[:, None]  # four points per pixel, each shared among its neighbours
    weights = torch.exp(-0.5 * (along / sigma).square())
    offsets = _offsets(2 * radius)
    across = (1 - (offsets - along * math.cos(angle)).abs()).clamp(min=0)
    down = (1 - (offsets - along * math.sin(angle)).abs()).clamp(min=0)
    kernel = (weights * down).T @ across
    return _convolve(image, kernel)


def _contrast(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    mean = image.mean(dim=(1, 2), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (image - mean)


def _brightness(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    """Raise the value of HSV; hue and saturation stay."""
    value = image.amax(dim=0, keepdim=True)
    brighter = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp(max=1)
    return torch.where(value > 0, image * (brighter / value.clamp(min=1e-6)), brighter)


def _jpeg(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    """Compress RGB as one image, other channels each as a grey one."""
    quality = (25, 18, 15, 10, 7)[level]
    parts = [image] if len(image) == 3 else image.split(1)
    return torch.cat([_through_jpeg(part, quality, "RGB" if len(part) == 3 else "GRAY") for part in parts])


def _through_jpeg(image: Pixels, quality: int, colorspace: str) -> Pixels:
    array = numpy.ascontiguousarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    subsampling = {"colorsubsampling": "420"} if colorspace == "RGB" else {"colorsubsampling": "Gray"}
    encoded = simplejpeg.encode_jpeg(array, quality, colorspace, **subsampling)
    return torch.from_numpy(simplejpeg.decode_jpeg(encoded, colorspace)).permute(2, 0, 1).float() / 255


def _pixelate(image: Pixels, level: int, generator: torch.Generator) -> Pixels:
    height, width = image.shape[1:]
    small = [max(1, int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[level])) for side in (width, height)]
    planes = [Image.fromarray(plane) for plane in (image * 255).round().to(torch.uint8).numpy()]
    box = Image.Resampling.BOX
    large = [plane.resize(small, box).resize((width, height), box) for plane in planes]
    return torch.stack([torch.from_numpy(numpy.array(plane)) for plane in large]).float() / 255


_CORRUPT: dict[str, _Corrupt] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
CORRUPTIONS = tuple(_CORRUPT)


@dataclass
class CorruptionsConfig(Settings):
    """Corruptions of the test images; every evaluator scores each of them beside the clean images."""

    section = "probe.corruptions"

    names: list[str] = setting([], "corruptions, or [all]; [] = none", one_of=(*CORRUPTIONS, "all"))
    severities: list[int] = setting([1, 2, 3, 4, 5], "severities of each, as in ImageNet-C", at_least=1, at_most=5)
    seed: int = setting(0, "seed of the noise and of the directions of motion")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.severities:
            raise ValueError(f"{self.key('severities')}=[] must have at least one severity")
        for name in ("names", "severities"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{self.key(name)}={values} has an entry twice")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the names, in the place of ``all`` every one."""
        return CORRUPTIONS if "all" in self.names else tuple(self.names)


@dataclass(frozen=True)
class Corruption:
    """Corrupts images; each is a function of (name, severity, seed, sample id), regardless of the batch.

    The random numbers of an image are those of its seed and id at every severity.
    """

    name: str
    severity: int  # 1..5
    seed: int = 0

    def __call__(self, images: UInt8[Tensor, "B C H W"], index: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
        """Corrupt images with these sample ids; one by one, since sizes of kernels and JPEG files are their own."""
        corrupt = _CORRUPT[self.name]
        corrupted = torch.empty_like(images)
        for row, sample in enumerate(index.tolist()):
            generator = generator_for(self.seed, "corruption", self.name, sample)
            image = corrupt(images[row].float() / 255, self.severity - 1, generator)
            corrupted[row] = (image * 255).round_().clamp_(0, 255).to(torch.uint8)
        return corrupted


def _scale(image: Pixels) -> float:
    return (min(image.shape[1:]) / _SIDE) ** (2 / 3)


def _offsets(reach: float) -> Float[Tensor, "k"]:
    """Return whole numbers that cover -reach..reach."""
    return torch.arange(-math.ceil(reach), math.ceil(reach) + 1).float()


def _convolve(image: Pixels, kernel: Float[Tensor, "h w"]) -> Pixels:
    """Average pixels with the weights of a kernel of odd sides; the border's pixels continue outside.

    By Fourier transforms: at 224 pixels a direct convolution with the kernels of motion took 2 seconds.
    """
    height, width = (side // 2 for side in kernel.shape)
    padded = F.pad(image, (width, width, height, height), mode="replicate")
    size = padded.shape[1:]
    product = torch.fft.rfft2(padded) * torch.fft.rfft2((kernel / kernel.sum()).flip(0, 1), size)
    return torch.fft.irfft2(product, size)[:, 2 * height :, 2 * width :]
