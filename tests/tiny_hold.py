"""A plug-in whose images come slowly while a file exists, so that a training cannot end before a test lets it."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data.sources.base import SOURCES
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.settings import setting


@dataclass
class HeldScenesConfig(ScenesConfig):
    hold: str = setting("", "file with the seconds that each batch takes while the file exists")


@SOURCES.register("held_scenes", HeldScenesConfig)
class HeldScenes(RenderedScenes):
    """The images of ``scenes``."""

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
        with suppress(FileNotFoundError):
            time.sleep(float(Path(self.config.hold).read_text()))
        return super().images(indices)
