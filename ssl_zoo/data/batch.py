"""What travels from the data side to a method: view specifications and batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.masks.base import Masks
from ssl_zoo.settings import setting

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass
class ViewConfig:
    """How one view is rendered from an image; every default is "leave it out"."""

    crop_scale: list[float] = setting(
        [1.0, 1.0], "area of the random resized crop, as a fraction of the image, [low, high]"
    )
    crop_aspect: list[float] = setting([0.75, 4 / 3], "width / height of the crop, [low, high], drawn log-uniformly")
    interpolation: str = setting("bilinear", "bilinear or bicubic, always antialiased")
    horizontal_flip: float = setting(0.0, "probability of a left-right flip")
    color_jitter: list[float] = setting([0.0, 0.0, 0.0, 0.0], "brightness, contrast, saturation, hue strength")
    color_jitter_probability: float = setting(0.8, "probability that the jitter is applied at all")
    grayscale: float = setting(0.0, "probability of dropping the colour")
    blur: float = setting(0.0, "probability of a Gaussian blur, sigma uniform in 0.1..2.0 pixels")
    solarize: float = setting(0.0, "probability of inverting all values above one half")
    mean: list[float] = setting(IMAGENET_MEAN, "subtracted per channel, pixels in 0..1")
    std: list[float] = setting(IMAGENET_STD, "divisor per channel")

    def normalize(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Pixels in 0..255 as the encoder gets them."""
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return (images.float() - 255 * mean) / (255 * std)

    def unnormalize(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """The inverse of ``normalize``, in 0..1."""
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return images.float() * std + mean

    def __post_init__(self) -> None:
        low, high = _pair("crop_scale", self.crop_scale)
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"view.crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1 (fractions of the area)"
            )
        low, high = _pair("crop_aspect", self.crop_aspect)
        if not 0 < low <= high:
            raise ValueError(f"view.crop_aspect={self.crop_aspect} must satisfy 0 < low <= high (width / height)")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"view.interpolation={self.interpolation!r}; permitted: bilinear, bicubic")
        for name in ("horizontal_flip", "color_jitter_probability", "grayscale", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"view.{name}={getattr(self, name)} is a probability, so it must lie in [0, 1]")
        if len(self.color_jitter) != 4 or min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                f"view.color_jitter={self.color_jitter} must be four strengths >= 0 for brightness, contrast, "
                "saturation and hue, the last at most 0.5"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"view.mean={self.mean} and view.std={self.std} need three values each, std above 0")


def _pair(name: str, values: list[float]) -> list[float]:
    if len(values) != 2:
        raise ValueError(f"view.{name}={values} must be two numbers, [low, high]")
    return values


@dataclass(frozen=True)
class ViewSpec:
    """``count`` views of one kind, rendered at ``size`` (height, width) pixels.

    ``masked`` views get masks from the run's mask generator, on the grid that the backbone gives this size.
    """

    name: str
    size: tuple[int, int]
    config: ViewConfig
    count: int = 1
    masked: bool = True


@dataclass(frozen=True)
class Corrupt:
    """A sample that could not be decoded and was replaced by another."""

    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The views of B images with their masks.

    ``views`` are uint8 on the host and normalised float32 once ``TrainingData.to_device`` has moved them.
    """

    views: tuple[Tensor, ...]  # each (B, 3, H, W)
    masks: tuple[Masks | None, ...] = ()  # aligned with views
    index: Int[Tensor, "B"] | None = None  # stable sample ids
    corrupt: tuple[Corrupt, ...] = ()  # samples replaced while loading; the host reports and counts them
    fingerprint: bytes | None = None  # digest of the planned sample ids and masks of the whole step, equal on all ranks

    @property
    def num_images(self) -> int:
        return self.views[0].shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with ``function`` applied to every tensor."""
        return replace(
            self,
            views=tuple(function(view) for view in self.views),
            masks=tuple(None if masks is None else masks.map(function) for masks in self.masks),
            index=None if self.index is None else function(self.index),
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of ``map``."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def pin_memory(self, device: object = None) -> "Batch":
        """The batch in page-locked memory; the name and signature that torch's DataLoader looks for."""
        return self.map(lambda tensor: tensor.pin_memory())

    def rows(self, rows: slice) -> "Batch":
        """The part of the batch that holds these images."""
        return replace(self.map(lambda tensor: tensor[rows]), corrupt=(), fingerprint=None)

    def micro_batches(self, count: int) -> Sequence["Batch"]:
        """``count`` consecutive parts of equal size; ``num_images`` is a multiple of ``count``."""
        if count == 1:
            return [replace(self, corrupt=())]
        size = self.num_images // count
        return [self.rows(slice(start, start + size)) for start in range(0, self.num_images, size)]
