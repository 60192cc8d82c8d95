"""ImageNet-1k (ILSVRC 2012) in its usual layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.data.files import Files, open_files
from ssl_zoo.data.listing import Reason
from ssl_zoo.data.names import printable
from ssl_zoo.data.sources.base import SOURCES, MissingSplit, Split, Splits
from ssl_zoo.data.sources.imagefolder import FilesConfig, FilesSource, Labelled, leave_out
from ssl_zoo.settings import setting

_FOLDERS = {Split.train: "train", Split.test: "val"}


@dataclass
class ImageNet1kConfig(FilesConfig):
    root: str = setting("", "folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or train.tar and val.tar")
    subset: str | None = setting(None, "text file of train images to keep, lines like n01440764_10026.JPEG; null = all")


@SOURCES.register("imagenet1k", ImageNet1kConfig)
class ImageNet1k(FilesSource):
    """ImageNet-1k: train/<wnid>/ and val/<wnid>/ folders, or a tar archive of each; optional subset lists.

    Labels number the wnids of both splits in sorted order, as every published classifier does.
    """

    def __init__(
        self, config: ImageNet1kConfig, split: Split, channels: int = 3, listed: "_Listed | None" = None
    ) -> None:
        listed = listed or _Listed.of(config)
        files = listed.files(split)
        wnids = {_wnid(name) for part in listed.found.values() for name in part.names}
        if split is Split.train and config.subset is not None:
            files = _subset(files, Path(config.subset).expanduser())
        own = [_wnid(name) for name in files.names]
        if 2 * own.count(None) >= len(own):
            raise _outside(files, own.index(None), MissingSplit if split is Split.test else ValueError)
        files, kept = leave_out(files, Reason.no_class, [wnid is None for wnid in own])
        labelled = Labelled.of(wnids - {None}, [own[row] for row in kept])
        super().__init__(config, split, files, channels, labelled=labelled)

    @classmethod
    def build_splits(cls, config: ImageNet1kConfig, channels: int = 3) -> Splits:
        return cls._both(config, channels, listed=_Listed.of(config))

    @classmethod
    def expected_size(cls, config: ImageNet1kConfig) -> int | None:
        return 1_281_167 if config.subset is None else None


@dataclass(frozen=True)
class _Listed:
    """The files of both splits; both are listed for either one, since their classes are numbered together."""

    root: Path
    found: Mapping[Split, Files]

    @classmethod
    def of(cls, config: ImageNet1kConfig) -> "_Listed":
        if not config.root:
            raise ValueError("data=imagenet1k needs data.root=FOLDER")
        root = Path(config.root).expanduser()
        found = {}
        for split, name in _FOLDERS.items():
            path = next((path for path in (root / name, root / f"{name}.tar") if path.exists()), None)
            if path is not None:
                found[split] = open_files(str(path), max_unpacked_bytes=config.max_unpacked_bytes)
        return cls(root, found)

    def files(self, split: Split) -> Files:
        if split not in self.found:
            name = _FOLDERS[split]
            kind = MissingSplit if split is Split.test else ValueError
            raise kind(f"data.root={self.root} has neither a folder {name}/ nor an archive {name}.tar")
        return self.found[split]


def _wnid(name: str) -> str | None:
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else None


def _outside(files: Files, position: int, kind: type[ValueError]) -> ValueError:
    name = printable(files.names[position])
    return kind(
        f"{files.path} contains {name} outside of a class folder; expected <wnid>/*.JPEG, e.g. n01440764/{name}. The "
        "validation images are distributed without folders: sort them into folders by the wnid of their label first"
    )


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
    is_kept = set(kept)
    others = [name for position, name in enumerate(files.names) if position not in is_kept]
    return files.keep(kept, files.listing.without(Reason.not_listed, others))
