"""DAVIS-2017: videos with the objects of every frame (Pont-Tuset et al., arXiv 1704.00675)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.files import open_files
from ssl_zoo.data.maps import MapSet
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Split
from ssl_zoo.data.sources.imagefolder import FilesConfig
from ssl_zoo.data.sources.with_maps import MappedFiles
from ssl_zoo.data.video import Video
from ssl_zoo.settings import setting


@dataclass
class DavisConfig(FilesConfig):
    root: str = setting("", "folder DAVIS with {JPEGImages,Annotations}/480p and ImageSets/2017/{train,val}.txt")


@SOURCES.register("davis", DavisConfig)
class Davis(MappedFiles):
    """DAVIS-2017 (arXiv 1704.00675): frames as images without labels, and videos with the objects of every frame."""

    def __init__(self, config: DavisConfig, split: Split, channels: int = 3) -> None:
        if not config.root:
            raise ValueError("data=davis needs data.root=FOLDER, the unpacked DAVIS-2017 (trainval, 480p)")
        root = Path(config.root).expanduser()
        listed = root / "ImageSets" / "2017" / ("train.txt" if split is Split.train else "val.txt")
        folders = [root / kind / "480p" for kind in ("JPEGImages", "Annotations")]
        if lacking := [path for path in (listed, *folders) if not path.exists()]:
            error = MissingSplit if split is Split.test and lacking == [listed] else ValueError
            raise error(f"data.root={root} has no {lacking[0].relative_to(root)}; expected the unpacked DAVIS-2017")
        files, maps = (open_files(str(path), max_unpacked_bytes=config.max_unpacked_bytes) for path in folders)
        wanted: dict[str, list[int]] = {name: [] for name in listed.read_text().split()}
        for position, name in enumerate(files.names):
            wanted.get(name.rpartition("/")[0], []).append(position)
        if missing := [name for name, positions in wanted.items() if not positions]:
            raise ValueError(f"{len(missing)} videos of {listed} have no frame, such as {folders[0] / missing[0]}")
        images = files.keep(sorted(position for positions in wanted.values() for position in positions))
        kind = {"name": "objects", "map_set": MapSet(num_classes=1)}
        super().__init__(config, split, images, channels, maps=maps, names_of=_annotation_names, **kind)
        position_of = {name: position for position, name in enumerate(images.names)}
        self._videos = {name: [position_of[files.names[p]] for p in positions] for name, positions in wanted.items()}

    @property
    def map_sets(self) -> Mapping[str, MapSet]:
        """Return nothing: the numbers of objects are no classes."""
        return {}

    @property
    def num_videos(self) -> int:
        return len(self._videos)

    def video(self, index: int) -> Video:
        name, positions = list(self._videos.items())[index]
        pairs = [self.image_and_map(position, "objects") for position in positions]
        frames, objects = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return Video(name, frames, objects)

    def converted(self, numbers: numpy.ndarray) -> UInt8[Tensor, "H W"]:
        return torch.from_numpy(numbers.astype(numpy.uint8))


def _annotation_names(name: str) -> Sequence[str]:
    return [f"{name.rpartition('.')[0]}.png"]
