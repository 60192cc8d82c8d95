"""Where images come from; importing this package registers every source."""

from ssl_zoo.data.sources import cifar10, fashion_mnist, imagefolder, imagenet1k, scenes  # noqa: F401  (they register)
from ssl_zoo.data.sources.base import SOURCES, CorruptImage, Source, SourceConfig, Split

__all__ = ["SOURCES", "CorruptImage", "Source", "SourceConfig", "Split"]
