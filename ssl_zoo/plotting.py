"""Panels of images, masks and features, put together into one picture: a row per image, a column per panel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.utils import make_grid

GREY = 0.5  # of patches that are not shown
_PANEL_PIXELS = 96  # smaller images are enlarged to about this height


def rows_of(columns: Sequence[Float[Tensor, "B 3 H W"]]) -> Float[Tensor, "3 rows columns"]:
    """One picture in 0..1: row i shows the i-th image of every column, with white gaps; small images are enlarged."""
    height = columns[0].shape[-2]
    panels = torch.stack(list(columns), dim=1).flatten(0, 1).float().clamp(0, 1)
    factor = max(1, _PANEL_PIXELS // height)
    enlarged = panels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=len(columns), padding=2, pad_value=1.0)


def patch_set(index: Int[Tensor, "B K"], num_patches: int) -> Bool[Tensor, "B N"]:
    """True at the patches ``index`` of each image."""
    nothing = torch.zeros(len(index), num_patches, dtype=torch.bool, device=index.device)
    return nothing.scatter_(1, index, True)


def on_grey(
    images: Float[Tensor, "B 3 H W"], shown: Bool[Tensor, "B N"], grid: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """The images with every patch that is not ``shown`` in grey."""
    return images.where(_enlarged(shown[:, None], grid, images.shape[-2:]), GREY)


def patch_colours(
    colours: Float[Tensor, "B N 3"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Images of ``size`` (height, width) in which each patch has one colour."""
    return _enlarged(colours.transpose(1, 2), grid, size)


def similarity_colours(similarity: Float[Tensor, "*S"]) -> Float[Tensor, "*S 3"]:
    """Cosine similarities as colours of matplotlib's viridis: 0 and less dark blue, 1 yellow."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](similarity.float().clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(colours).float().to(similarity.device)


@dataclass(frozen=True)
class PrincipalColours:
    """Features as colours: red, green and blue are the first three principal components of reference features.

    Equal features have equal colours, whichever image they are of. Each component is scaled such that all but the
    outermost 2 % of the reference features on either side lie in 0..1.
    """

    mean: Float[Tensor, "D"]
    components: Float[Tensor, "D 3"]
    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]

    @classmethod
    def of(cls, features: Float[Tensor, "*S D"]) -> "PrincipalColours":
        """Fitted to ``features``; exact and without any random number."""
        flat = features.flatten(0, -2).double()
        mean = flat.mean(dim=0)
        _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))  # ascending
        components = vectors[:, -3:].flip(1)
        largest = components.abs().argmax(dim=0, keepdim=True)
        components = components * components.gather(0, largest).sign()  # an eigenvector's sign is arbitrary
        ends = torch.tensor([0.02, 0.98], dtype=torch.float64, device=flat.device)
        low, high = ((flat - mean) @ components).quantile(ends, dim=0)
        return cls(mean, components, low, high)

    def __call__(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S 3"]:
        """Colours in 0..1."""
        projected = (features.double() - self.mean) @ self.components
        return ((projected - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1).float()


def _enlarged(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, C, N) values of patches as (B, C, height, width) values of pixels."""
    rows, columns = grid
    return cells.unflatten(2, grid).repeat_interleave(size[0] // rows, -2).repeat_interleave(size[1] // columns, -1)
