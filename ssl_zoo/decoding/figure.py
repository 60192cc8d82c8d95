"""Figure 6 of I-JEPA: an image, its context, and samples of what the predictor expects in a target block."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.decoding.blocks import VIEW, Blocks, FrozenPredictor
from ssl_zoo.plotting import Column, Figure, Swatch, as_rgb, on_grey, patch_set

_OUTLINE = (0.1, 0.9, 0.2)  # of the block


def plot_samples(
    batch: Batch, blocks: Blocks, samples: Float[Tensor, "S seeds C P P"], predictor: FrozenPredictor
) -> Figure:
    """Plot a row per block: the image, the context, then each sample in its place in the context, outlined.

    Args:
        samples: normalised as the view.
    """
    images, grid = batch.pixels(VIEW), predictor.grid
    height, width = (side // cells for side, cells in zip(images.shape[-2:], grid, strict=True))
    masks = batch.masks[VIEW]
    visible = patch_set(masks.context.flatten(1), grid[0] * grid[1])
    shown, contexts = as_rgb(images)[blocks.images], as_rgb(on_grey(images, visible, grid))[blocks.images]
    boxes = (blocks.boxes.cpu() * torch.tensor([height, width, height, width])).tolist()
    pixels = batch.normalize[VIEW].inverse(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
    columns = [
        Column("image", torch.stack([_outlined(image, box) for image, box in zip(shown, boxes, strict=True)])),
        Column("context", torch.stack([_outlined(image, box) for image, box in zip(contexts, boxes, strict=True)])),
    ]
    for number, of_seed in enumerate(pixels.unbind(1)):
        rows = zip(contexts, as_rgb(of_seed), boxes, strict=True)
        drawn = [_outlined(_pasted(context, block, box), box) for context, block, box in rows]
        columns.append(Column(f"sample {number + 1}", torch.stack(drawn)))
    return Figure(
        "What the predictor expects in a target block: samples of a generator that is given its prediction",
        columns,
        (Swatch("target block", _OUTLINE), Swatch("not shown to the encoder")),
        note="What all samples have in common is in the prediction; what differs is not.",
    )


def _pasted(image: Float[Tensor, "3 H W"], block: Float[Tensor, "3 P P"], box: Sequence[int]) -> Float[Tensor, "3 H W"]:
    top, left, height, width = box
    resized = F.interpolate(block[None], (height, width), mode="bilinear", antialias=True)[0]
    image = image.clone()
    image[:, top : top + height, left : left + width] = resized.clamp(0, 1)
    return image


def _outlined(image: Float[Tensor, "3 H W"], box: Sequence[int]) -> Float[Tensor, "3 H W"]:
    """Draw a line of one pixel around a box, inside it where the box ends at the image's edge."""
    top, left, height, width = box
    rows, columns = image.shape[-2:]
    first, last = max(0, top - 1), min(rows - 1, top + height)
    start, end = max(0, left - 1), min(columns - 1, left + width)
    image, colour = image.clone(), image.new_tensor(_OUTLINE)[:, None]
    image[:, [first, last], start : end + 1] = colour[..., None]
    image[:, first : last + 1, [start, end]] = colour[..., None]
    return image
