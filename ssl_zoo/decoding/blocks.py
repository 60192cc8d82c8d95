"""Target blocks as a decoder gets them: a pooled prediction of a frozen method, its place, and the pixels there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from ssl_zoo.data.batch import Batch
from ssl_zoo.method import METHODS, Method

VIEW = "image"  # the view in which methods predict blocks


@dataclass(frozen=True)
class Blocks:
    """The S target blocks of a batch: of each image those of its contexts, in order.

    Attributes:
        predictions: the mean over a block's patches of what is predicted there.
        boxes: top, left, height and width of the smallest rectangle that holds the block, in patches.
        images: the rows of the blocks' images in the batch.
        keys: a number of each block that depends on its image's id and its place in the image alone.
    """

    predictions: Float[Tensor, "S D"]
    boxes: Int[Tensor, "S 4"]
    images: Int[Tensor, "S"]
    keys: Int[Tensor, "S"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> "Blocks":
        return Blocks(self.predictions[rows], self.boxes[rows], self.images[rows], self.keys[rows])


class FrozenPredictor:
    """A trained method in eval mode, called without gradient.

    No module, so that it is neither trained nor saved with a decoder.

    Raises:
        ValueError: the method predicts no target blocks; the message lists those that do.
    """

    def __init__(self, method: Method) -> None:
        if type(method).predict_blocks is Method.predict_blocks:
            raise ValueError(
                f"{type(method).__name__} predicts no target blocks, so there is nothing to decode. Methods that do: "
                f"{', '.join(predicting_methods())}"
            )
        self.method = method.eval().requires_grad_(False)
        self.grid: tuple[int, int] = method.encoder.grid

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Blocks:
        masks = batch.masks[VIEW]
        predictions = self.method.predict_blocks(batch).float().mean(dim=-2)
        num_images, *per_image, _ = predictions.shape
        rows = torch.arange(num_images, device=predictions.device)
        ids = rows if batch.index is None else batch.index
        num_blocks = per_image[0] * per_image[1]
        return Blocks(
            predictions.flatten(0, 2),
            bounding_boxes(masks.paired(masks.targets).flatten(0, 2), self.grid),
            rows.repeat_interleave(num_blocks),
            (ids[:, None] * num_blocks + torch.arange(num_blocks, device=ids.device)).flatten(),
        )

    def to(self, device: torch.device) -> "FrozenPredictor":
        self.method.to(device)
        return self


def predicting_methods() -> Sequence[str]:
    """Return the names of the registered methods that predict target blocks."""
    return sorted(name for name, cls in METHODS if cls.predict_blocks is not Method.predict_blocks)


def bounding_boxes(patches: Int[Tensor, "S T"], grid: tuple[int, int]) -> Int[Tensor, "S 4"]:
    """Return top, left, height and width, in patches, of the smallest rectangle around each set of patches."""
    corners = torch.stack([patches // grid[1], patches % grid[1]], dim=-1)
    first, last = corners.amin(dim=1), corners.amax(dim=1)
    return torch.cat([first, last - first + 1], dim=1)


def crops(
    images: Float[Tensor, "B C H W"], blocks: Blocks, grid: tuple[int, int], size: int
) -> Float[Tensor, "S C {size} {size}"]:
    """Cut each block's rectangle out of its image and resize it to a square, bilinear, antialiased by averaging."""
    patch = torch.tensor([side / cells for side, cells in zip(images.shape[-2:], grid, strict=True)])
    corner, extent = (part * patch.to(images.device) for part in blocks.boxes.float().split(2, dim=1))
    ends = torch.cat([corner.flip(1), (corner + extent).flip(1)], dim=1)  # x before y
    return roi_align(images, torch.cat([blocks.images[:, None].float(), ends], dim=1), size, aligned=True)


def box_features(boxes: Int[Tensor, "S 4"], grid: tuple[int, int]) -> Float[Tensor, "S 32"]:
    """Return sines and cosines of the rectangles' centres and sides, as fractions of the image, at four octaves."""
    shape = torch.tensor(grid, device=boxes.device)
    corner, extent = boxes.split(2, dim=1)
    fractions = torch.cat([(corner + extent / 2) / shape, extent / shape], dim=1)
    angles = fractions[..., None] * (torch.pi * 2.0 ** torch.arange(4, device=boxes.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


BOX_FEATURES = 32
