"""Figures of images, masks and features: a row per image, a column per panel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.utils import make_grid

GREY = 0.5  # value of patches that are not shown
_PANEL_PIXELS = 96  # smaller images are enlarged to about this height


def rows_of(columns: Sequence[Float[Tensor, "B _ H W"]]) -> Float[Tensor, "3 rows columns"]:
    """Plot row i from the i-th image of every column, in 0..1, with white gaps; small images are enlarged."""
    height = columns[0].shape[-2]
    panels = torch.stack([*map(as_rgb, columns)], dim=1).flatten(0, 1).float().clamp(0, 1)
    factor = max(1, _PANEL_PIXELS // height)
    enlarged = panels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=len(columns), padding=2, pad_value=1.0)


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
    images: Float[Tensor, "B C H W"], shown: Bool[Tensor, "B N"], grid: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """Replace every patch that is not ``shown`` by grey."""
    return images.where(_enlarged(shown[:, None], grid, images.shape[-2:]), GREY)


def patch_colours(
    colours: Float[Tensor, "B N 3"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Plot images of ``size`` (height, width) in which each patch has one colour."""
    return _enlarged(colours.transpose(1, 2), grid, size)


def similarity_colours(similarity: Float[Tensor, "*S"]) -> Float[Tensor, "*S 3"]:
    """Map cosine similarities to matplotlib's viridis: 0 and less is dark blue, 1 is yellow."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](similarity.float().clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(colours).float().to(similarity.device)


@dataclass(frozen=True)
class PrincipalColours:
    """Maps features to colours: red, green and blue are the first three principal components of reference features.

    Equal features have equal colours in all images. Each component is scaled such that its 2nd and 98th percentile on
    the reference features become 0 and 1.
    """

    mean: Float[Tensor, "D"]
    components: Float[Tensor, "D 3"]
    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]

    @classmethod
    def of(cls, features: Float[Tensor, "*S D"]) -> "PrincipalColours":
        """Fit the components to ``features``, exactly and deterministically."""
        flat = _float64(features.flatten(0, -2))
        mean = flat.mean(dim=0)
        _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))  # ascending
        components = vectors[:, -3:].flip(1)
        largest = components.abs().argmax(dim=0, keepdim=True)
        components = components * components.gather(0, largest).sign()  # an eigenvector's sign is arbitrary
        ends = torch.tensor([0.02, 0.98], dtype=torch.float64, device=flat.device)
        low, high = ((flat - mean) @ components).quantile(ends, dim=0)
        return cls(mean, components, low, high)

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
