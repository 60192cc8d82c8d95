"""From a configuration to the views, masks and batches of a run; each part is found by the class of its config."""

from collections.abc import Sequence
from typing import Protocol

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.sources import SOURCES, SourceConfig, Split
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.optim import OptimConfig
from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.masks import MASKS, MaskGenerator, MasksConfig
from ssl_zoo.method import METHODS, MethodConfig
from ssl_zoo.nn import BackboneConfig
from ssl_zoo.targets import TargetConfig


class RunConfig(Protocol):
    """The sections of a configuration that the engine builds from."""

    seed: int
    method: MethodConfig
    backbone: BackboneConfig
    masks: MasksConfig | None
    targets: TargetConfig | None
    data: SourceConfig
    loader: LoaderConfig
    optim: OptimConfig
    trainer: TrainerConfig


def build_views(method: MethodConfig, backbone: BackboneConfig) -> Sequence[ViewSpec]:
    """The views that a method asks for at the backbone's image size."""
    return METHODS.get(METHODS.name_of(method)).views(method, backbone.image_shape)


def build_generators(
    views: Sequence[ViewSpec], masks: MasksConfig | None, backbone: BackboneConfig
) -> list[MaskGenerator | None]:
    """One mask generator per view, on the grid that the backbone gives the view; None for views without masks.

    Raises:
        ValueError: the geometry of the masks can't be met on a grid.
    """
    if masks is None:
        return [None for view in views for _ in range(view.count)]
    by_size = {view.size: MASKS.build(masks, backbone.grid_of(view.size)) for view in views if view.masked}
    return [by_size[view.size] if view.masked else None for view in views for _ in range(view.count)]


def build_data(config: RunConfig, ranks: Processes) -> TrainingData:
    """The training batches of this rank.

    Raises:
        ValueError: impossible masks, data that is missing or in another layout, a batch that does not divide.
    """
    views = build_views(config.method, config.backbone)
    return TrainingData(
        mask_generators=build_generators(views, config.masks, config.backbone),
        source=SOURCES.build(config.data, Split.train),
        views=views,
        seed=config.seed,
        batch_size=config.trainer.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        config=config.loader,
    )
