"""Decoding samples of a source, and what is to be logged of it."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.batch import Corrupt
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.sources.base import Source

log = logging.getLogger(__name__)


def all_decoded(source: Source, index: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"] | None:
    """Decode images of one size at once; None where sizes differ or an image is corrupt."""
    if source.image_size is not None:
        with suppress(CorruptImage):  # decoding one by one finds out which
            return source.images(index)
    return None


def decoded(source: Source, sample: int) -> UInt8[Tensor, "C H W"] | Corrupt:
    """Decode one image, or return why it can't be."""
    try:
        return source.image(sample)
    except CorruptImage as error:
        return Corrupt(error.name, error.reason)


def announce(source: Source, notices: Sequence[str]) -> None:
    """Log what reading images brought up, once for all splits and worker processes of a data set."""
    if notices and not source.config.is_announced:
        source.config.is_announced = True
        log.warning("%s", notices[0])
