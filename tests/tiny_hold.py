"""A plug-in whose images come slowly while a file exists, so that a training cannot end before a test lets it."""

import time
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.sources.base import SOURCES
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.settings import setting

HELD_SECONDS = 0.5  # per batch


@dataclass
class HeldScenesConfig(ScenesConfig):
    hold: str = setting("", "file that slows the source down while it exists")


@SOURCES.register("held_scenes", HeldScenesConfig)
class HeldScenes(RenderedScenes):
    """The images of ``scenes``."""

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
        if Path(self.config.hold).exists():
            time.sleep(HELD_SECONDS)
        return super().images(indices)
