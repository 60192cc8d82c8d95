"""Antialiased resizing of crops: one implementation for a batch of images of one size, one for a single photograph.

Both compute the same as Pillow and torchvision: the filter is stretched by the reduction factor and cut at the crop's
border, its weights sum to one, and results are rounded to 8 bits once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ssl_zoo.precision import exact_matmuls


def resize_crop(
    image: UInt8[Tensor, "*B C H W"], box: tuple[int, int, int, int], size: tuple[int, int], interpolation: str
) -> UInt8[Tensor, "*B C h w"]:
    """Resize the crop ``box`` = (top, left, height, width) of one or several images to ``size`` pixels."""
    top, left, height, width = box
    crop = image[..., top : top + height, left : left + width]
    if (height, width) == size:
        return crop
    flat = crop.reshape(-1, image.shape[-3], height, width).contiguous(
        memory_format=torch.channels_last
    )  # faster in torch
    return F.interpolate(flat, size, mode=interpolation, antialias=True).view(*image.shape[:-2], *size)


def resize_crops(
    images: UInt8[Tensor, "B C H W"],
    boxes: Int[Tensor, "B 4"],
    flipped: Bool[Tensor, "B"],
    size: tuple[int, int],
    interpolation: str,
) -> UInt8[Tensor, "B C h w"]:
    """Resize one crop of each of many small images, mirrored left to right where ``flipped``.

    Resizing is separable, so that a crop is two small matmuls per image, and a flip reverses the rows of one of the
    matrices: 4 times faster at 32 pixels than a loop over images, but slower for photographs.
    """
    (num_images, channels, height, width), (out_height, out_width) = images.shape, size
    rows = _filter_matrix(boxes[:, 0], boxes[:, 2], height, out_height, interpolation)
    columns = _filter_matrix(boxes[:, 1], boxes[:, 3], width, out_width, interpolation)
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    flat = images.reshape(num_images, channels * height, width).float()
    with exact_matmuls():
        wide = torch.bmm(flat, columns.transpose(1, 2)).view(num_images, channels, height, out_width)
        return torch.matmul(rows[:, None], wide).round_().clamp_(0, 255).to(torch.uint8)


def _filter_matrix(
    start: Int[Tensor, "B"], length: Int[Tensor, "B"], in_size: int, out_size: int, interpolation: str
) -> Float[Tensor, "B out in"]:
    """Return the weight of each input pixel in each output pixel of the crop ``start .. start+length``."""
    scale = length.float() / out_size
    stretch = scale.clamp(min=1.0)[:, None, None]  # antialiasing widens the filter only when shrinking
    centers = start[:, None] + (torch.arange(out_size, device=start.device) + 0.5) * scale[:, None]
    pixels = torch.arange(in_size, device=start.device)
    distance = ((pixels + 0.5) - centers[:, :, None]).div_(stretch).abs_()
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    weights *= inside[:, None]
    return weights.div_(weights.sum(2, keepdim=True))


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1.0).clamp_(min=0.0)


def _cubic(distance: Tensor) -> Tensor:
    """Compute Keys' kernel with a = -0.5, which Pillow and torch use with antialiasing (a = -0.75 without)."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, distance.new_zeros(())))
