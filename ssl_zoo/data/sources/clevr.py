"""CLEVR (arXiv 1612.06890) as in table 4 of the I-JEPA paper: object counts and the nearest object's distance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.data.files import open_files
from ssl_zoo.data.names import printable
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Split
from ssl_zoo.data.sources.imagefolder import FilesConfig, FilesSource
from ssl_zoo.settings import setting

# Upper edges of the distance classes but the last, in CLEVR's units (VTAB, arXiv 1910.04867: clevr_closest_distance).
DISTANCE_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)
MIN_OBJECTS = 3  # per scene of CLEVR


@dataclass
class ClevrConfig(FilesConfig):
    root: str = setting("", "folder CLEVR_v1.0 with images/{train,val}/*.png and scenes/CLEVR_{train,val}_scenes.json")


@SOURCES.register("clevr", ClevrConfig)
class Clevr(FilesSource):
    """CLEVR v1.0: label sets count (number of objects) and distance (of the nearest object, in six classes)."""

    num_classes = 8

    def __init__(self, config: ClevrConfig, split: Split, channels: int = 3) -> None:
        if not config.root:
            raise ValueError("data=clevr needs data.root=FOLDER, the unpacked CLEVR_v1.0")
        root, part = Path(config.root).expanduser(), "train" if split is Split.train else "val"
        images, scenes = root / "images" / part, root / "scenes" / f"CLEVR_{part}_scenes.json"
        for path in (images, scenes):
            if not path.exists():
                kind = ValueError if split is Split.train else MissingSplit
                raise kind(f"data.root={root} has no {path.relative_to(root)}; expected the unpacked CLEVR_v1.0")
        files = open_files(str(images), max_unpacked_bytes=config.max_unpacked_bytes)
        super().__init__(config, split, files, channels)
        depths = _depths(scenes)
        lost = [name for name in files.names if name not in depths]
        if lost:
            raise ValueError(f"{scenes} has no scene for {len(lost)} images of {images}, such as {printable(lost[0])}")
        of_image = [depths[name] for name in files.names]
        nearest = torch.tensor([min(depth) for depth in of_image], dtype=torch.float64)
        edges = torch.tensor(DISTANCE_EDGES, dtype=torch.float64)
        self._label_sets = {
            "count": torch.tensor([len(depth) - MIN_OBJECTS for depth in of_image]),
            "distance": torch.bucketize(nearest, edges),  # an edge belongs to the class below it
        }

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        return self._label_sets


def _depths(scenes: Path) -> dict[str, list[float]]:
    """Read the distance of every object from the camera, the third of its pixel coordinates."""
    try:
        described = json.loads(scenes.read_text())["scenes"]
        return {scene["image_filename"]: [o["pixel_coords"][2] for o in scene["objects"]] for scene in described}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{scenes} is no scene file of CLEVR v1.0: {type(error).__name__}: {error}") from error
