"""Data sources read labelled or unlabelled images from files, archives or a generator."""

from ssl_zoo.data.sources.base import SOURCES, CorruptImage, Source, SourceConfig, Split

__all__ = ["SOURCES", "CorruptImage", "Source", "SourceConfig", "Split"]
