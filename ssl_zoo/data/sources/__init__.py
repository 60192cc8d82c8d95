"""Data sources read labelled or unlabelled images from files, archives or a generator."""

from ssl_zoo.data.sources.base import (
    SOURCES,
    MissingSplit,
    Source,
    SourceConfig,
    Split,
    Splits,
    build_source,
    build_splits,
    check_channels,
)
