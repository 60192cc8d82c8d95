"""From a configuration to the method, views, masks and batches of a run; each part is found by its config's class."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ssl_zoo.data.batch import ViewSpec, default_mean, default_std
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.sources import Source, SourceConfig, Split, build_source
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.optim import OptimConfig
from ssl_zoo.engine.settings import MonitorConfig, TrainerConfig
from ssl_zoo.masks import MASKS, MaskGenerator, MasksConfig
from ssl_zoo.method import Method, MethodConfig, build_method
from ssl_zoo.nn import BackboneConfig
from ssl_zoo.regularizers import RegularizerConfig
from ssl_zoo.targets import TargetConfig
from ssl_zoo.views import VIEWS, ViewSetConfig, check_channels, colour_augmentations, view_configs

log = logging.getLogger(__name__)


class RunConfig(Protocol):
    """The sections of a configuration that the engine builds from."""

    seed: int
    method: MethodConfig
    regularizer: RegularizerConfig | None
    backbone: BackboneConfig
    views: ViewSetConfig
    masks: MasksConfig | None
    targets: TargetConfig | None
    data: SourceConfig
    loader: LoaderConfig
    optim: OptimConfig
    trainer: TrainerConfig
    monitor: MonitorConfig


def build_views(views: ViewSetConfig, backbone: BackboneConfig) -> Sequence[ViewSpec]:
    """Describe the views of a run at the backbone's image size and number of channels.

    Raises:
        ValueError: an augmentation, mean or standard deviation that doesn't fit the number of channels.
    """
    check_channels(views, backbone.in_channels)
    specs = VIEWS.build(views).specs(backbone.image_shape)
    return [replace(spec, channels=backbone.in_channels) for spec in specs]


def build_generators(
    views: Sequence[ViewSpec], masks: MasksConfig | None, backbone: BackboneConfig
) -> Mapping[str, MaskGenerator]:
    """Build one mask generator per masked view, on the grid that the backbone gives the view; none without masks.

    Raises:
        ValueError: the geometry of the masks can't be met on a grid.
    """
    masked = [view for view in views if view.masked and masks is not None]
    by_size = {size: MASKS.build(masks, backbone.grid_of(size)) for size in {view.size for view in masked}}
    return {view.name: by_size[view.size] for view in masked}


def build_run_method(config: RunConfig, device: torch.device | str = "cpu") -> Method:
    """Build the method of a run, with its target and regularizer; arguments as for ``build_method``."""
    return build_method(
        config.method, config.backbone, config.targets, config.regularizer, seed=config.seed, device=device
    )


def build_data(config: RunConfig, ranks: Processes, source: Source | None = None) -> TrainingData:
    """Build the training batches of this rank.

    Args:
        source: the training images, if they have been built already.

    Raises:
        ValueError: impossible masks, data that is missing or in another layout or of other channels, a batch that can't
            be split.
    """
    views = build_views(config.views, config.backbone)
    if ranks.is_main:
        _log_channels(config.views, views)
    return TrainingData(
        mask_generators=build_generators(views, config.masks, config.backbone),
        source=source or build_source(config.data, Split.train, config.backbone.in_channels),
        views=views,
        seed=config.seed,
        batch_size=config.trainer.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        config=config.loader,
    )


def _log_channels(config: ViewSetConfig, views: Sequence[ViewSpec]) -> None:
    """Log in a line each what grey images leave without effect, and statistics that nobody has measured."""
    channels = views[0].channels
    idle = [key for name, view in view_configs(config) for key in colour_augmentations(name, view)]
    if channels == 1 and idle:
        keys = ", ".join(key.partition("=")[0] for key in idle)
        log.info("backbone.in_channels=1: saturation, hue and grayscale change nothing in grey images (%s)", keys)
    if channels not in (1, 3) and views[0].mean == default_mean(channels) and views[0].std == default_std(channels):
        log.info(
            "backbone.in_channels=%d: images are normalised with a mean of 0.5 and a standard deviation of 0.25; "
            "tools/channel_stats.py measures those of your data and prints the lines to set",
            channels,
        )
