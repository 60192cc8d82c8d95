"""Data sources read labelled or unlabelled images from files, archives or a generator."""

from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split, build_source, check_channels
