"""Values that follow from others where they are null, so that a run's ``config.yaml`` has what the run used."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ssl_zoo.data.batch import ViewConfig, default_mean, default_std


def fill_derived(values: DictConfig) -> None:
    """Set the statistics of every view whose mean or std is null to the defaults for ``backbone.in_channels``."""
    if not any(OmegaConf.is_missing(values, section) for section in ("views", "backbone")):
        _fill_statistics(values.views, values.backbone.in_channels)


def _fill_statistics(node: Any, channels: int) -> None:
    if isinstance(node, ListConfig):
        for inner in node:
            _fill_statistics(inner, channels)
    elif isinstance(node, DictConfig):
        if issubclass(OmegaConf.get_type(node) or object, ViewConfig):
            node.mean = default_mean(channels) if node.mean is None else node.mean
            node.std = default_std(channels) if node.std is None else node.std
            return
        for key in node:
            if not OmegaConf.is_missing(node, key):
                _fill_statistics(node[key], channels)
