"""The registry of backbones, and the image and patch sizes that the data side needs before any network is built."""

from dataclasses import dataclass

from ssl_zoo.registry import Registry
from ssl_zoo.settings import Settings, setting

BACKBONES = Registry("backbone", "backbone")


def _check_multiple(key: str, size: int, patch_size: int) -> None:
    if size < 1 or size % patch_size:
        low = size // patch_size * patch_size
        near = f"{low}, {low + patch_size}" if low > 0 else f"{patch_size}"
        raise ValueError(f"{key}={size} is no multiple of patch_size={patch_size}; nearest: {near}")


@dataclass
class BackboneConfig(Settings):
    """Base class of every backbone's config: the size of its images and of their patches."""

    section = "backbone"

    image_size: int = setting(224, "height of the images in pixels, and their width unless image_width is set")
    image_width: int | None = setting(None, "width of the images in pixels where they are not square")
    patch_size: int = setting(16, "side of a patch in pixels", at_least=1)
    in_channels: int = setting(3, "colour channels of an image", at_least=1)
    init_from: str | None = setting(
        None, "weights that a new run starts from: a run, a folder of weights, or a file of another project"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multiple("backbone.image_size", self.image_size, self.patch_size)
        if self.image_width is not None:
            _check_multiple("backbone.image_width", self.image_width, self.patch_size)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.image_size, self.image_width or self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of the configured size."""
        return self.grid_of(self.image_shape)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of ``size`` (height, width) pixels.

        Raises:
            ValueError: if a side is no multiple of the patch size.
        """
        height, width = size
        _check_multiple("image height", height, self.patch_size)
        _check_multiple("image width", width, self.patch_size)
        return height // self.patch_size, width // self.patch_size
