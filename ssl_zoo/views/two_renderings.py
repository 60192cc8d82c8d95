"""One crop of each image at two sizes: for the encoder, and for a tokenizer of images (BEiT, CAE)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.settings import setting
from ssl_zoo.views.base import VIEWS
from ssl_zoo.views.single_crop import SingleCrop, SingleCropConfig


@dataclass
class TwoRenderingsConfig(SingleCropConfig):
    """Augmentations of the crop, which both renderings show, and the size of the second one."""

    rendering_scale: float = setting(
        0.5, "size of the second rendering over that of the image; DALL-E: 8 / patch_size", above=0
    )


@VIEWS.register("two_renderings", TwoRenderingsConfig)
class TwoRenderings(SingleCrop):
    """The view ``image``, and ``tokenizer``: the same crop, flip and colours at another size, with pixels in 0..1.

    Differs from the reference: the second rendering has the interpolation of the first; BEiT and CAE shrink it by
    Lanczos' filter.
    """

    config: TwoRenderingsConfig

    def specs(self, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        size = tuple(round(side * self.config.rendering_scale) for side in image_size)
        if min(size) < 1:
            raise ValueError(
                f"views.rendering_scale={self.config.rendering_scale} of {image_size[0]}x{image_size[1]} pixels leaves "
                "no pixel"
            )
        pixels = replace(self.config, mean=[0.0], std=[1.0])  # one value for all channels
        return [*super().specs(image_size), ViewSpec("tokenizer", size, pixels, masked=False, same_as="image")]
