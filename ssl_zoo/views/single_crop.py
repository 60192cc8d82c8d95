"""One crop of each image: the view of I-JEPA, MAE, SimMIM and data2vec."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.views.base import VIEWS, ViewSet, ViewSetConfig


@dataclass
class SingleCropConfig(ViewConfig, ViewSetConfig):
    """Augmentations of the one view."""


@VIEWS.register("single_crop", SingleCropConfig)
class SingleCrop(ViewSet):
    """One view, ``image``, which gets masks where the run has any."""

    config: SingleCropConfig

    def specs(self, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        return [ViewSpec("image", image_size, self.config)]
