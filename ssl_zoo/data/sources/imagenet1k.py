"""ImageNet-1k (ILSVRC 2012) in its usual layout."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ssl_zoo.data.files import Files, open_files
from ssl_zoo.data.sources.base import SOURCES, Split
from ssl_zoo.data.sources.imagefolder import FilesConfig, FilesSource
from ssl_zoo.settings import setting


@dataclass
class ImageNet1kConfig(FilesConfig):
    root: str = setting("", "folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or train.tar and val.tar")
    subset: str | None = setting(None, "text file of train images to keep, lines like n01440764_10026.JPEG; null = all")


@SOURCES.register("imagenet1k", ImageNet1kConfig)
class ImageNet1k(FilesSource):
    """ImageNet-1k: train/<wnid>/ and val/<wnid>/ folders, or a tar archive of each; optional subset lists.

    Labels number the wnids in sorted order, as every published classifier does.
    """

    def __init__(self, config: ImageNet1kConfig, split: Split, channels: int = 3) -> None:
        if not config.root:
            raise ValueError("data=imagenet1k needs data.root=FOLDER")
        folder = "train" if split is Split.train else "val"
        root = Path(config.root).expanduser()
        path = next((p for p in (root / folder, root / f"{folder}.tar") if p.exists()), None)
        if path is None:
            raise ValueError(f"data.root={root} has neither a folder {folder}/ nor an archive {folder}.tar")
        files = open_files(str(path), max_unpacked_bytes=config.max_unpacked_bytes)
        wnids = [_wnid(name, path) for name in files.names]
        self.classes = sorted(set(wnids))
        number = {wnid: label for label, wnid in enumerate(self.classes)}
        if split is Split.train and config.subset is not None:
            files = _subset(files, Path(config.subset).expanduser())
            wnids = [_wnid(name, path) for name in files.names]
        super().__init__(config, split, files, channels)
        self._labels = torch.tensor([number[wnid] for wnid in wnids])
        self.num_classes = len(self.classes)

    @classmethod
    def expected_size(cls, config: ImageNet1kConfig) -> int | None:
        return 1_281_167 if config.subset is None else None


def _wnid(name: str, path: Path) -> str:
    parts = name.split("/")
    if len(parts) < 2:
        raise ValueError(
            f"{path} contains {name} outside of a class folder; expected <wnid>/*.JPEG, e.g. n01440764/{name}. The "
            "validation images are distributed without folders: sort them into folders by the wnid of their label first"
        )
    return parts[-2]


def _subset(files: Files, path: Path) -> Files:
    if not path.is_file():
        raise ValueError(f"data.subset={path} is no file")
    wanted = set(path.read_text().split())
    kept = [position for position, name in enumerate(files.names) if name.rpartition("/")[2] in wanted]
    if len(kept) != len(wanted):
        missing = wanted - {files.names[position].rpartition("/")[2] for position in kept}
        raise ValueError(
            f"data.subset={path} names {len(wanted)} images, {len(kept)} of them are in {files.path}; "
            f"missing e.g. {', '.join(sorted(missing)[:3])}"
        )
    return files.keep(kept)
