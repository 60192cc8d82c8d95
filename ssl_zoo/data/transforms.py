"""One view of each image of a batch: all random numbers are sampled at once, then applied.

Sampling for the global batch from one generator and slicing a rank's rows makes an image's augmentation independent of
ranks and workers. Order of the operations: crop and resize, flip, colour jitter (its four parts in
random order), grayscale, blur, solarize (BYOL, arXiv 2006.07733, appendix B; DINO, arXiv 2104.14294).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.rendering import Recolouring, Rendering
from ssl_zoo.data.resample import resize_crop, resize_crops
from ssl_zoo.data.view_params import ViewParams

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
_BLUR_SIGMA = (0.1, 2.0)  # pixels
_PIXELS_AT_ONCE = 2**17  # of images whose colours are changed together: what stays in a core's cache


def sample_params(config: ViewConfig, num_images: int, generator: torch.Generator) -> ViewParams:
    """Sample every random decision for one view of ``num_images`` images.

    All numbers are always sampled, so that switching one augmentation off changes no other.
    """
    uniform = torch.rand(num_images, 2 * CROP_ATTEMPTS + 16, generator=generator)
    areas, ratios, rest = uniform.split([CROP_ATTEMPTS, CROP_ATTEMPTS, 16], dim=1)
    (area_low, area_high), (log_low, log_high) = config.crop_scale, map(math.log, config.crop_aspect)
    brightness, contrast, saturation, hue = config.color_jitter
    low = torch.tensor([max(0.0, 1 - brightness), max(0.0, 1 - contrast), max(0.0, 1 - saturation), -hue])
    high = torch.tensor([1 + brightness, 1 + contrast, 1 + saturation, hue])
    return ViewParams(
        crop_area=area_low + (area_high - area_low) * areas,
        crop_aspect=torch.exp(log_low + (log_high - log_low) * ratios),
        crop_place=rest[:, 0:2],
        flipped=rest[:, 2] < config.horizontal_flip,
        jittered=(rest[:, 3] < config.color_jitter_probability) & (max(config.color_jitter) > 0),
        jitter=low + (high - low) * rest[:, 4:8],
        jitter_order=rest[:, 8:12].argsort(1),
        grayscale=rest[:, 12] < config.grayscale,
        blurred=rest[:, 13] < config.blur,
        blur_sigma=_BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * rest[:, 14],
        solarized=rest[:, 15] < config.solarize,
    )


def crop_boxes(params: ViewParams, heights: Int[Tensor, "B"], widths: Int[Tensor, "B"], config: ViewConfig) -> Tensor:
    """Boxes (top, left, height, width), distributed as those of torchvision's RandomResizedCrop.

    The first of ten sampled shapes that fits into the image is taken; if none does, the largest centred crop of a
    permitted aspect.

    Returns:
        (B, 4) integers.
    """
    area = params.crop_area * (heights * widths)[:, None]
    crop_widths = (area * params.crop_aspect).sqrt().round().long()
    crop_heights = (area / params.crop_aspect).sqrt().round().long()
    fits = (
        (crop_widths > 0) & (crop_widths <= widths[:, None]) & (crop_heights > 0) & (crop_heights <= heights[:, None])
    )
    first = fits.int().argmax(1, keepdim=True)
    height, width = crop_heights.gather(1, first)[:, 0], crop_widths.gather(1, first)[:, 0]
    room = torch.stack([heights - height + 1, widths - width + 1], 1)
    place = (params.crop_place * room).long().minimum(room - 1)  # a float32 product can round up to the bound itself
    boxes = torch.stack([place[:, 0], place[:, 1], height, width], 1)
    if bool(fits.any(1).all()):
        return boxes
    return torch.where(fits.any(1)[:, None], boxes, _fallback_boxes(heights, widths, *config.crop_aspect))


def _fallback_boxes(heights: Tensor, widths: Tensor, aspect_low: float, aspect_high: float) -> Tensor:
    height = torch.minimum(heights, (widths / aspect_low).round().long())
    width = torch.minimum(widths, (heights * aspect_high).round().long())
    return torch.stack([(heights - height) // 2, (widths - width) // 2, height, width], 1)


def is_whole_image(config: ViewConfig) -> bool:
    """Whether the view takes the largest centred crop of its own aspect instead of a random one."""
    return list(config.crop_scale) == [1.0, 1.0]


def centered_boxes(heights: Int[Tensor, "B"], widths: Int[Tensor, "B"], size: tuple[int, int]) -> Int[Tensor, "B 4"]:
    """The largest centred box of the aspect of ``size`` (height, width) in each image."""
    aspect = size[1] / size[0]
    return _fallback_boxes(heights, widths, aspect, aspect)


def view_boxes(params: ViewParams, heights: Tensor, widths: Tensor, spec: ViewSpec) -> Int[Tensor, "B 4"]:
    """Return the boxes (top, left, height, width) that a view shows of images of these sizes."""
    if is_whole_image(spec.config):
        return centered_boxes(heights, widths, spec.size)
    return crop_boxes(params, heights, widths, spec.config)


def equal_boxes(params: ViewParams, image_size: tuple[int, int], spec: ViewSpec) -> Int[Tensor, "B 4"]:
    """Return the boxes (top, left, height, width) that a view shows of images of one size."""
    heights, widths = (torch.full((len(params.flipped),), side) for side in image_size)
    return view_boxes(params, heights, widths, spec)


def plan_equal(params: ViewParams, image_size: tuple[int, int], spec: ViewSpec) -> Rendering:
    """Plan one view of each of many images of one size (height, width)."""
    return Rendering(Recolouring.of(params, spec.channels), equal_boxes(params, image_size, spec), params.flipped)


def render(images: UInt8[Tensor, "B C H W"], rendering: Rendering, spec: ViewSpec) -> UInt8[Tensor, "B C h w"]:
    """Compute a planned view of images, which may be cropped already, on their device, where the plan is too."""
    if rendering.boxes is None:
        view = images.clone()
    else:
        view = resize_crops(images, rendering.boxes, rendering.flipped, spec.size, spec.config.interpolation)
    rendering.colours.apply(view)
    return view


def render_equal(images: UInt8[Tensor, "B C H W"], params: ViewParams, spec: ViewSpec) -> UInt8[Tensor, "B C h w"]:
    """One view of each of many images of one size."""
    boxes = equal_boxes(params, tuple(images.shape[-2:]), spec)
    view = resize_crops(images, boxes, params.flipped, spec.size, spec.config.interpolation)
    return _recoloured(view, params)


def crop_each(images: Sequence[UInt8[Tensor, "C _ _"]], params: ViewParams, spec: ViewSpec) -> UInt8[Tensor, "B C h w"]:
    """Crop, resize and flip each of several photographs of different sizes."""
    heights = torch.tensor([image.shape[1] for image in images])
    widths = torch.tensor([image.shape[2] for image in images])
    boxes = view_boxes(params, heights, widths, spec).tolist()
    view = torch.empty(len(images), len(images[0]), *spec.size, dtype=torch.uint8)
    for row, (image, box, flipped) in enumerate(zip(images, boxes, params.flipped.tolist(), strict=True)):
        resized = resize_crop(image, tuple(box), spec.size, spec.config.interpolation)
        view[row] = resized.flip(2) if flipped else resized
    return view


def render_each(
    images: Sequence[UInt8[Tensor, "C _ _"]], params: ViewParams, spec: ViewSpec
) -> UInt8[Tensor, "B C h w"]:
    """One view of each of several photographs of different sizes."""
    return _recoloured(crop_each(images, params, spec), params)


def _recoloured(view: UInt8[Tensor, "B C h w"], params: ViewParams) -> UInt8[Tensor, "B C h w"]:
    """Change the colours in place, of as many images at once as a core's cache holds."""
    at_once = max(1, _PIXELS_AT_ONCE // view[0, 0].numel())
    for start in range(0, len(view), at_once):
        rows = slice(start, start + at_once)
        Recolouring.of(params.rows(rows), view.shape[1]).apply(view[rows])
    return view


def evaluation_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box (top, left, height, width) that evaluators see: the whole of a small image, the centre of others.

    Large images: the shorter side is resized to 256 / 224 of the size, then the centre is cropped (the protocol of all
    methods here on ImageNet), computed as one crop and one resize. An image that is no larger than the view has no
    margin to spare and is shown whole, up to its aspect.
    """
    if (height, width) == size:
        return 0, 0, height, width
    top, left, box_height, box_width = centered_boxes(torch.tensor([height]), torch.tensor([width]), size)[0].tolist()
    margin = 0.0 if box_height <= size[0] else 1 - 224 / 256
    kept_height, kept_width = max(1, round(box_height * (1 - margin))), max(1, round(box_width * (1 - margin)))
    return top + (box_height - kept_height) // 2, left + (box_width - kept_width) // 2, kept_height, kept_width


def evaluation_view(image: UInt8[Tensor, "*B C H W"], size: tuple[int, int]) -> UInt8[Tensor, "*B C h w"]:
    """Return the deterministic view of an image, or of each of several: its ``evaluation_box``, resized."""
    if tuple(image.shape[-2:]) == size:
        return image
    return resize_crop(image, evaluation_box(*image.shape[-2:], size), size, "bicubic")
