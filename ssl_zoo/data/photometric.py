"""Colour operations on batches of uint8 images, each image with a strength of its own.

They compute what torchvision.transforms.v2.functional computes for one image and one strength; its functions take no
tensor of strengths, and a call per image takes longer than the arithmetic of small images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)
_BLUR_KERNEL = 13  # pixels: three of the largest standard deviation, 2, to each side
_SOLARIZE_THRESHOLD = 128


def brightness(images: UInt8[Tensor, "n C h w"], factors: Float[Tensor, "n"]) -> UInt8[Tensor, "n C h w"]:
    """All values times the image's factor."""
    return (images * _each(factors)).clamp_(0, 255).to(torch.uint8)


def contrast(images: UInt8[Tensor, "n C h w"], factors: Float[Tensor, "n"]) -> UInt8[Tensor, "n C h w"]:
    """Distances from the mean grey of the image times its factor."""
    return _blended(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def saturation(images: UInt8[Tensor, "n 3 h w"], factors: Float[Tensor, "n"]) -> UInt8[Tensor, "n 3 h w"]:
    """Distances from the pixel's own grey times the image's factor."""
    return _blended(images, _grey(images), factors)


def hue(images: UInt8[Tensor, "n 3 h w"], shifts: Float[Tensor, "n"]) -> UInt8[Tensor, "n 3 h w"]:
    """Hues moved by the image's fraction of the colour circle; saturation and value (HSV) stay."""
    red, green, blue = images.float().unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # Sixths of the circle, counted from the colour that is largest; of equal ones from the first.
    from_green = torch.where(value == green, blue - red, red - green)
    difference = torch.where(value == red, green - blue, from_green).div_(spread.clamp(min=1))
    start = torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0))
    sixths = difference.add_(start).add_(6 * shifts[:, None, None]).remainder_(6)
    weights = (  # of red, green and blue: 1 where the channel has the value, 0 where it is the lowest
        (sixths - 3).abs_().sub_(1).clamp_(0, 1),
        (sixths - 2).abs_().neg_().add_(2).clamp_(0, 1),
        (sixths - 4).abs_().neg_().add_(2).clamp_(0, 1),
    )
    low = value - spread
    shifted = torch.stack([torch.addcmul(low, spread, weight) for weight in weights], dim=1)
    return shifted.mul_(255.999 / 255).to(torch.uint8)  # torchvision's rounding


def grayscale(images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Three equal channels."""
    return _grey(images).to(torch.uint8).expand_as(images)


def blur(images: UInt8[Tensor, "n C h w"], sigmas: Float[Tensor, "n"]) -> UInt8[Tensor, "n C h w"]:
    """Gaussian blur with the image's standard deviation in pixels."""
    radius = _BLUR_KERNEL // 2
    distances = torch.arange(-radius, radius + 1, device=sigmas.device)
    kernels = (distances / sigmas[:, None]).square().mul(-0.5).softmax(dim=1)
    kernels = kernels.repeat_interleave(images.shape[1], 0)[:, None]  # one per channel
    planes = F.pad(images.float(), (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(planes, kernels[:, :, None, :], groups=len(kernels))
    both = F.conv2d(rows, kernels[:, :, :, None], groups=len(kernels))
    return both.round_().clamp_(0, 255).to(torch.uint8).view_as(images)


def solarize(images: UInt8[Tensor, "n C h w"]) -> UInt8[Tensor, "n C h w"]:
    """Values of one half and more inverted."""
    return torch.where(images >= _SOLARIZE_THRESHOLD, 255 - images, images)


def _each(strengths: Float[Tensor, "n"]) -> Float[Tensor, "n 1 1 1"]:
    return strengths[:, None, None, None]


def _grey(images: UInt8[Tensor, "n C h w"]) -> Float[Tensor, "n 1 h w"]:
    """Luma, rounded down; of images that are not RGB the mean of their channels."""
    if images.shape[1] != 3:
        return images.float().mean(dim=1, keepdim=True).floor_()
    red, green, blue = images.float().split(1, dim=1)
    return red.mul_(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).floor_()


def _blended(
    images: UInt8[Tensor, "n C h w"], others: Float[Tensor, "n 1 #h #w"], factors: Float[Tensor, "n"]
) -> UInt8[Tensor, "n C h w"]:
    factors = _each(factors)
    return (images * factors).add_((1 - factors) * others).clamp_(0, 255).to(torch.uint8)
