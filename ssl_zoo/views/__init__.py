"""View sets: which views of an image a batch holds, at which size, with which augmentations, and which are masked."""

from ssl_zoo.views.base import VIEWS, ViewSet, ViewSetConfig, check_channels, colour_augmentations, view_configs
