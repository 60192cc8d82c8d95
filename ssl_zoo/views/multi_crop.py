"""Several crops of each image: two global ones for SimCLR, local ones beside them for DINO, iBOT and MSN."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.settings import setting
from ssl_zoo.views.base import VIEWS, ViewSet, ViewSetConfig


@dataclass
class TwoCropsConfig(ViewSetConfig):
    """Augmentations of two global crops."""

    global_crop: ViewConfig = setting(ViewConfig(), "augmentations of the first global crop")
    second_global_crop: ViewConfig = setting(ViewConfig(), "augmentations of the second global crop")


@VIEWS.register("two_crops", TwoCropsConfig)
class TwoCrops(ViewSet):
    """Two global crops, ``global_0`` and ``global_1``, which get masks where the run has any."""

    config: TwoCropsConfig

    def specs(self, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        crops = (self.config.global_crop, self.config.second_global_crop)
        return [ViewSpec(f"global_{number}", image_size, crop) for number, crop in enumerate(crops)]


@dataclass
class MultiCropConfig(TwoCropsConfig):
    """Augmentations, number and size of global and local crops (SwAV, arXiv 2006.09882)."""

    local_crop: ViewConfig = setting(ViewConfig(crop_scale=[0.05, 0.4]), "augmentations of the local crops")
    num_local_crops: int = setting(8, "local crops of each image", at_least=0)
    local_size: int = setting(96, "side of a local crop in pixels", at_least=1)


@VIEWS.register("multi_crop", MultiCropConfig)
class MultiCrop(TwoCrops):
    """Two global crops and several smaller local ones, ``local_0``, ``local_1`` and so on, which are never masked."""

    config: MultiCropConfig

    def specs(self, image_size: tuple[int, int]) -> Sequence[ViewSpec]:
        config, size = self.config, (self.config.local_size, self.config.local_size)
        local = [ViewSpec(f"local_{i}", size, config.local_crop, masked=False) for i in range(config.num_local_crops)]
        return [*super().specs(image_size), *local]
