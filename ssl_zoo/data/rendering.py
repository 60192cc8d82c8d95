"""What makes a view of the images of a batch: decided on the host, computed on any device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data import photometric
from ssl_zoo.data.view_params import ViewParams

# The parts of the jitter, the strength that changes nothing, and whether they change colours alone. The latter have
# nothing to do in grey images, and are refused for other numbers of channels when a run is built.
_JITTER = (("brightness", 1.0, False), ("contrast", 1.0, False), ("saturation", 1.0, True), ("hue", 0.0, True))
_OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": photometric.brightness,
    "contrast": photometric.contrast,
    "saturation": photometric.saturation,
    "hue": photometric.hue,
    "grayscale": lambda images, _: photometric.grayscale(images),
    "blur": photometric.blur,
    "solarize": lambda images, _: photometric.solarize(images),
}


@dataclass(frozen=True)
class Recolouring:
    """Colour operations on some of the images of a view, one after the other.

    Attributes:
        operations: names, with the number of images that each changes.
        rows: these images, of all operations in order.
        strengths: as ``photometric`` takes them; 0 for operations without.
    """

    operations: tuple[tuple[str, int], ...]
    rows: Int[Tensor, "n"]
    strengths: Float[Tensor, "n"]

    @classmethod
    def of(cls, params: ViewParams, channels: int) -> "Recolouring":
        """Order what was sampled: the jitter in each image's own order, grayscale, blur, solarize."""
        chosen: list[tuple[str, Tensor, Tensor]] = []
        none = torch.zeros_like(params.blur_sigma)
        if bool(params.jittered.any()):
            for position in range(len(_JITTER)):
                for part, (name, neutral, needs_colour) in enumerate(_JITTER):
                    strengths = params.jitter[:, part]
                    if not needs_colour or channels == 3:
                        is_turn = params.jitter_order[:, position] == part
                        chosen.append((name, params.jittered & is_turn & (strengths != neutral), strengths))
        if channels == 3:
            chosen.append(("grayscale", params.grayscale, none))
        chosen += [("blur", params.blurred, params.blur_sigma), ("solarize", params.solarized, none)]
        rows = [images.nonzero()[:, 0] for _, images, _ in chosen]
        counts = ((name, len(images)) for (name, *_), images in zip(chosen, rows, strict=True))
        strengths = [values[images] for (*_, values), images in zip(chosen, rows, strict=True)]
        return cls(tuple((name, count) for name, count in counts if count), torch.cat(rows), torch.cat(strengths))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Recolouring":
        """Apply ``function`` to every tensor."""
        return replace(self, rows=function(self.rows), strengths=function(self.strengths))

    def apply(self, view: UInt8[Tensor, "B C h w"]) -> None:
        """Change the view in place; its device is that of the tensors here."""
        counts = [count for _, count in self.operations]
        parts = zip(self.operations, self.rows.split(counts), self.strengths.split(counts), strict=True)
        for (name, _), rows, strengths in parts:
            view[rows] = _OPERATIONS[name](view[rows], strengths)


@dataclass(frozen=True)
class Rendering:
    """What makes one view of B images.

    Attributes:
        colours: the colour operations, after cropping.
        boxes: crops (top, left, height, width) of images of one size; None where the view is cropped already.
        flipped: crops to mirror left to right; None where that is done.
    """

    colours: Recolouring
    boxes: Int[Tensor, "B 4"] | None = None
    flipped: Bool[Tensor, "B"] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Rendering":
        """Apply ``function`` to every tensor."""
        boxes, flipped = (None if tensor is None else function(tensor) for tensor in (self.boxes, self.flipped))
        return Rendering(self.colours.map(function), boxes, flipped)
