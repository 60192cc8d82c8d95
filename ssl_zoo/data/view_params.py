"""What is random about one view of each image of a batch."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ViewParams:
    """The random decisions for one view of B images."""

    crop_area: Float[Tensor, "B attempts"]  # fractions of the image
    crop_aspect: Float[Tensor, "B attempts"]  # width / height
    crop_place: Float[Tensor, "B 2"]  # top and left, in [0, 1) of the room that the crop leaves
    flipped: Bool[Tensor, "B"]
    jittered: Bool[Tensor, "B"]
    jitter: Float[Tensor, "B 4"]  # factors of brightness, contrast, saturation; hue shift
    jitter_order: Int[Tensor, "B 4"]
    grayscale: Bool[Tensor, "B"]
    blurred: Bool[Tensor, "B"]
    blur_sigma: Float[Tensor, "B"]
    solarized: Bool[Tensor, "B"]

    def rows(self, rows: slice) -> "ViewParams":
        return ViewParams(**{name: value[rows] for name, value in vars(self).items()})
