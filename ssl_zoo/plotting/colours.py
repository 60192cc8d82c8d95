"""Colours of patches: hidden ones grey, features by principal components, similarities by a colour map."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GREY = 0.5  # value of patches of an image that are not shown
BLANK = 0.94  # value of such patches among colours of features, which may be grey themselves


def as_rgb(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return images of any number of channels as RGB: grey ones as grey, of others the first three channels.

    Of two channels the second is green and blue.
    """
    channels = images.shape[1]
    return images[:, [min(channel, channels - 1) for channel in range(3)]] if channels != 3 else images


def patch_set(index: Int[Tensor, "B K"], num_patches: int) -> Bool[Tensor, "B N"]:
    """Return True at the patches ``index`` of each image."""
    nothing = torch.zeros(len(index), num_patches, dtype=torch.bool, device=index.device)
    return nothing.scatter_(1, index, True)


def on_grey(
    images: Float[Tensor, "B C H W"], shown: Bool[Tensor, "B N"], grid: tuple[int, int], value: float = GREY
) -> Float[Tensor, "B C H W"]:
    """Replace every patch that is not ``shown`` by ``value``."""
    return images.where(_enlarged(shown[:, None], grid, images.shape[-2:]), value)


def patch_colours(
    colours: Float[Tensor, "B N 3"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Plot images of ``size`` (height, width) in which each patch has one colour."""
    return _enlarged(colours.transpose(1, 2), grid, size)


def similarity_colours(similarity: Float[Tensor, "*S"]) -> Float[Tensor, "*S 3"]:
    """Map cosine similarities to colours: 0 and less is dark blue, 1 is yellow."""
    return map_colours(similarity.clamp(0, 1))


def map_colours(values: Float[Tensor, "*S"]) -> Float[Tensor, "*S 3"]:
    """Map values in 0..1 to matplotlib's viridis, from dark blue to yellow."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](values.float().cpu().numpy())[..., :3]
    return torch.from_numpy(colours).float().to(values.device)


@dataclass(frozen=True)
class PrincipalColours:
    """Maps features to colours: red, green and blue are the first three principal components of reference features.

    Equal features have equal colours in all images. Each component is scaled such that its 2nd and 98th percentile on
    the reference features become 0 and 1.

    Attributes:
        explained: fraction of the variance along each component.
    """

    mean: Float[Tensor, "D"]
    components: Float[Tensor, "D 3"]
    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]
    explained: Float[Tensor, "3"]

    @classmethod
    def of(cls, features: Float[Tensor, "*S D"]) -> "PrincipalColours":
        """Fit the components to ``features``, exactly and deterministically."""
        flat = _float64(features.flatten(0, -2))
        mean = flat.mean(dim=0)
        values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))  # ascending
        components = vectors[:, -3:].flip(1)
        largest = components.abs().argmax(dim=0, keepdim=True)
        components = components * components.gather(0, largest).sign()  # an eigenvector's sign is arbitrary
        ends = torch.tensor([0.02, 0.98], dtype=torch.float64, device=flat.device)
        low, high = ((flat - mean) @ components).quantile(ends, dim=0)
        explained = values[-3:].flip(0) / values.sum().clamp_min(1e-12)
        return cls(mean, components, low, high, explained)

    def __call__(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S 3"]:
        """Return colours in 0..1."""
        projected = (_float64(features) - self.mean) @ self.components
        scaled = ((projected - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1)
        return scaled.float().to(features.device)


def _float64(features: Tensor) -> Tensor:
    return features.cpu().double()  # MPS has no float64


def _enlarged(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Expand (B, C, N) values of patches to (B, C, height, width) values of pixels."""
    rows, columns = grid
    return cells.unflatten(2, grid).repeat_interleave(size[0] // rows, -2).repeat_interleave(size[1] // columns, -1)
