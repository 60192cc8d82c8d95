"""What travels from the data side to a method: view specifications and batches."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data.rendering import Rendering
from ssl_zoo.masks.base import Masks
from ssl_zoo.settings import Settings, setting

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2


def default_mean(channels: int) -> list[float]:
    """Return ImageNet's mean for RGB, that of its luminance for grey, and half of the range for other images."""
    if channels == 3:
        return list(IMAGENET_MEAN)
    return [round(sum(map(operator.mul, _LUMA, IMAGENET_MEAN)), 3)] if channels == 1 else [0.5] * channels


def default_std(channels: int) -> list[float]:
    """Return ImageNet's standard deviation for RGB, nearly that of its luminance for grey, else a quarter of the range.

    The luminance's is exact for channels that vary together, which those of photographs nearly do.
    """
    if channels == 3:
        return list(IMAGENET_STD)
    return [round(sum(map(operator.mul, _LUMA, IMAGENET_STD)), 3)] if channels == 1 else [0.25] * channels


@dataclass
class ViewConfig(Settings):
    """Augmentations of one view; each default leaves its augmentation out."""

    section = "views"

    crop_scale: list[float] = setting(
        [1.0, 1.0], "crop area over image area, [low, high]", length=2, above=0, at_most=1
    )
    crop_aspect: list[float] = setting([0.75, 4 / 3], "width / height, log-uniform in [low, high]", length=2, above=0)
    interpolation: str = setting("bilinear", "bilinear or bicubic, always antialiased", one_of=("bilinear", "bicubic"))
    horizontal_flip: float = setting(0.0, "probability of a left-right flip", at_least=0, at_most=1)
    color_jitter: list[float] = setting(
        [0.0] * 4, "brightness, contrast, saturation, hue; the last two need RGB images", length=4, at_least=0
    )
    color_jitter_probability: float = setting(0.8, "probability that the jitter is applied", at_least=0, at_most=1)
    grayscale: float = setting(0.0, "probability of dropping the colour; needs RGB images", at_least=0, at_most=1)
    blur: float = setting(0.0, "probability of a Gaussian blur, sigma uniform in 0.1..2.0 px", at_least=0, at_most=1)
    solarize: float = setting(0.0, "probability of inverting all values above one half", at_least=0, at_most=1)
    mean: list[float] | None = setting(
        None,
        "subtracted per channel, pixels in 0..1; null: ImageNet's for RGB, its luminance's for grey, else 0.5",
    )
    std: list[float] | None = setting(
        None, "divisor per channel; null: ImageNet's for RGB, its luminance's for grey, else 0.25", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{self.key(name)}={[low, high]} must be [low, high] with low <= high")
        if self.color_jitter[3] > 0.5:
            raise ValueError(f"{self.key('color_jitter')}={self.color_jitter}: the hue strength must be at most 0.5")


@dataclass(frozen=True)
class ViewSpec:
    """One view of every image.

    Attributes:
        name: key of the view in a batch.
        size: height and width in pixels.
        masked: the view gets masks where the run has a mask generator, on the grid that the backbone gives its size.
        same_as: name of an earlier view whose random crop, flip and colours this one repeats, at a size, interpolation
            and normalisation of its own.
        channels: of the images.
    """

    name: str
    size: tuple[int, int]
    config: ViewConfig
    masked: bool = True
    same_as: str | None = None
    channels: int = 3

    @property
    def mean(self) -> Sequence[float]:
        """Return the mean that normalises the view, one value per channel."""
        return default_mean(self.channels) if self.config.mean is None else self.config.mean

    @property
    def std(self) -> Sequence[float]:
        """Return the standard deviation that normalises the view, one value per channel."""
        return default_std(self.channels) if self.config.std is None else self.config.std

    @property
    def normalize(self) -> "Normalize":
        """Return the view's normalisation."""
        return Normalize(self.mean, self.std)


class Normalize:
    """(view / 255 - mean) / std on uint8 views of any device; the constants stay on each device once moved there."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, view: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale, offset = self._on(view.device)
        return view.float().mul_(scale).add_(offset)

    def inverse(self, view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the pixels of a normalised view, in 0..1."""
        mean, std = (view.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return view.float() * std + mean

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            scale = [1 / (255 * std) for std in self.std]
            offset = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
            self._constants[device] = tuple(
                torch.tensor(values, device=device)[:, None, None] for values in (scale, offset)
            )
        return self._constants[device]


@dataclass(frozen=True)
class Corrupt:
    """A sample that could not be decoded and was replaced by another."""

    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The views of B images with their masks.

    Attributes:
        views: (B, C, H, W) by name: uint8 on the host, normalised float32 once ``TrainingData.to_device`` has moved
            them.
        masks: by name of the view, for the views that have any.
        index: stable ids of the samples.
        corrupt: samples that were replaced while loading; the host reports and counts them.
        notices: lines for the log that reading the images brought up.
        fingerprint: digest of the planned sample ids and masks of the whole step, equal on all ranks.
        normalize: the normalisation of each view.
        images: of one size, from which the device renders all views.
        renderings: what is left to do for each view on the device; ``TrainingData.to_device`` does it.
    """

    views: Mapping[str, Tensor]
    masks: Mapping[str, Masks] = field(default_factory=dict)
    index: Int[Tensor, "B"] | None = None
    corrupt: tuple[Corrupt, ...] = ()
    notices: tuple[str, ...] = ()
    fingerprint: bytes | None = None
    normalize: Mapping[str, Normalize] = field(default_factory=dict)
    images: UInt8[Tensor, "B C H W"] | None = None
    renderings: Mapping[str, Rendering] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return len(next(iter(self.views.values())))

    def group(self, kind: str) -> list[Tensor]:
        """Return the views of one kind in order: ``global`` gives ``global_0``, ``global_1`` and so on."""
        return [view for name, view in self.views.items() if name.startswith(f"{kind}_")]

    def pixels(self, view: str, values: Float[Tensor, "B C H W"] | None = None) -> Float[Tensor, "B C H W"]:
        """Return the pixels of a view in 0..1, or of other values under its normalisation."""
        return self.normalize[view].inverse(self.views[view] if values is None else values)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply ``function`` to every tensor."""
        return replace(
            self,
            views={name: function(view) for name, view in self.views.items()},
            masks={name: masks.map(function) for name, masks in self.masks.items()},
            index=None if self.index is None else function(self.index),
            images=None if self.images is None else function(self.images),
            renderings={name: rendering.map(function) for name, rendering in self.renderings.items()},
        )

    def tensors(self) -> list[Tensor]:
        """Return every tensor, in the order of ``map``."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def pin_memory(self, device: object = None) -> "Batch":
        """Copy the batch to page-locked memory; torch's DataLoader looks for this name and signature."""
        return self.map(lambda tensor: tensor.pin_memory())

    def rows(self, rows: slice) -> "Batch":
        """Return the part of the batch that holds these images; its views have to be rendered already."""
        if self.renderings:
            raise ValueError("a batch can be cut once TrainingData.to_device has rendered its views")
        return replace(self.map(lambda tensor: tensor[rows]), corrupt=(), fingerprint=None)

    def micro_batches(self, count: int) -> Sequence["Batch"]:
        """Split the batch into ``count`` consecutive parts of equal size; ``num_images`` is a multiple of ``count``."""
        if count == 1:
            return [replace(self, corrupt=())]
        size = self.num_images // count
        return [self.rows(slice(start, start + size)) for start in range(0, self.num_images, size)]
