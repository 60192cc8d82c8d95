"""Data sources; importing this package registers them."""

from ssl_zoo.data.sources import (  # noqa: F401  (they register)
    cifar10,
    clevr,
    fashion_mnist,
    imagefolder,
    imagenet1k,
    mixture,
    scenes,
    torchvision_dataset,
    webdataset,
)
from ssl_zoo.data.sources.base import SOURCES, CorruptImage, Source, SourceConfig, Split

__all__ = ["SOURCES", "CorruptImage", "Source", "SourceConfig", "Split"]
