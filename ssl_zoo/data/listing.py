"""What a folder or archive holds: its images by format, everything that is left out, and the reasons."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ssl_zoo.data.decode import EXTENSIONS
from ssl_zoo.data.names import is_hidden, printable

# Image files that no decoder here reads. They are counted apart from other files, since their owner expects them.
UNREAD_IMAGES = frozenset(
    (
        *("heic", "heif", "avif", "jxl", "jp2", "j2k", "svg", "svgz", "eps", "ai", "psd", "xcf", "tga", "dds"),
        *("exr", "hdr", "pfm", "ico", "icns", "pcx", "raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2"),
        *("npy", "npz", "mat", "dcm", "dicom", "nii", "mha", "mhd", "nrrd", "mrc", "czi", "svs", "ndpi", "fits"),
    )
)
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "apng": "PNG"}
READ_AS = {ending[1:]: _FORMATS.get(ending[1:], ending[1:].upper()) for ending in EXTENSIONS}
_MAX_EXTENSION = 8
_KEPT_NAMES, _SHOWN_NAMES, _SHOWN_KINDS = 100, 3, 5


class Reason(Enum):
    """Why a file or folder is left out, in singular and plural."""

    unread = "image of another format", "images of other formats"
    other = "other file", "other files"
    hidden_file = "hidden file", "hidden files"
    hidden_folder = "hidden folder", "hidden folders"
    run = "run directory", "run directories"
    in_run = "image in run directories", "images in run directories"
    broken_link = "broken link", "broken links"
    known_folder = "link to a folder that is read already", "links to folders that are read already"
    archive_link = "link in the archive", "links in the archive"
    special = "pipe, socket or device", "pipes, sockets and devices"
    unreadable_folder = "unreadable folder", "unreadable folders"
    empty_folder = "empty folder named like an image", "empty folders named like images"
    replaced = "member that a later one of its name replaces", "members that a later one of their name replaces"
    no_class = "image outside of the class folders", "images outside of the class folders"
    no_split = "image outside of the split folders", "images outside of the split folders"
    not_in_shards = "sample that could not be written to the shards", "samples that could not be written to the shards"
    not_listed = "image outside of data.subset", "images outside of data.subset"

    @property
    def plural(self) -> str:
        return self.value[1]


_RUN_FILE, _RUN_COMPANIONS = "config.yaml", {"metrics.jsonl", "environment.json", "checkpoints"}
OUTPUT_MARK = ".ssl_zoo_output"  # a file that declares its folder an output, as visualizations outside of runs


@dataclass
class LeftOutFiles:
    """Files and folders that are left out for one reason.

    Attributes:
        names: the first hundred.
        kinds: counts by extension, for files whose extension is the reason.
    """

    count: int = 0
    names: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def text(self, reason: Reason) -> str:
        names = ", ".join(sorted(self.names)[:_SHOWN_NAMES]) + (", ..." if self.count > _SHOWN_NAMES else "")
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common(_SHOWN_KINDS))
        more = ", ..." if len(self.kinds) > _SHOWN_KINDS else ""
        return f"{self.count:,} {reason.value[self.count != 1]}{f' ({kinds}{more})' if kinds else ''}: {names}"


@dataclass
class Listing:
    """The images of a folder or archive and what else is there; every file is counted exactly once.

    Folders that are not entered, such as hidden ones and run directories, count once, without their files.
    """

    images: Counter[str] = field(default_factory=Counter)
    left_out: dict[Reason, LeftOutFiles] = field(default_factory=dict)

    def leave_out(self, reason: Reason, name: str, kind: str | None = None) -> None:
        """Count and name a file that is left out."""
        self.add(reason, 1, [name])
        if kind is not None:
            self.left_out[reason].kinds[kind] += 1

    def add(self, reason: Reason, count: int, names: Sequence[str]) -> None:
        """Count files that are left out, of which only the first may be named."""
        if count:
            group = self.left_out.setdefault(reason, LeftOutFiles())
            group.count += count
            group.names += [printable(name) for name in names[: _KEPT_NAMES - len(group.names)]]

    def update(self, other: "Listing") -> None:
        """Add the counts of another folder or archive."""
        self.images.update(other.images)
        for reason, group in other.left_out.items():
            self.add(reason, group.count, group.names)
            self.left_out[reason].kinds.update(group.kinds)

    def move_out(self, reason: Reason, names: Iterable[str]) -> None:
        """Leave images out that have been counted as images."""
        for name in names:
            self.images[READ_AS[ending_of(name)]] -= 1
            self.leave_out(reason, name)
        self.images = +self.images  # drops zeros

    def without(self, reason: Reason, names: Iterable[str]) -> "Listing":
        """Return a listing in which these images are left out."""
        result = copy.deepcopy(self)
        result.move_out(reason, names)
        return result

    def is_image(self, name: str) -> bool:
        """Count a file by its extension and return whether it is an image that can be read."""
        ending = ending_of(name)
        read_as = READ_AS.get(ending)
        if read_as is not None:
            self.images[read_as] += 1
        elif ending in UNREAD_IMAGES:
            self.leave_out(Reason.unread, name, f".{ending}")
        else:
            self.leave_out(
                Reason.other, name, f".{printable(ending)}" if 0 < len(ending) < 8 else "without an extension"
            )
        return read_as is not None

    @property
    def num_images(self) -> int:
        return self.images.total()

    @property
    def num_left_out(self) -> int:
        return sum(group.count for group in self.left_out.values())

    def left_out_text(self) -> str:
        """Return ``left out: 3 (2 other files (2 .txt): a.txt, b.txt; 1 broken links: c.png)``; empty if nothing is."""
        if not self.left_out:
            return ""
        groups = sorted(self.left_out.items(), key=lambda item: -item[1].count)
        return f"left out: {self.num_left_out:,} ({'; '.join(group.text(reason) for reason, group in groups)})"

    def formats_text(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.images.most_common())


def ending_of(name: str) -> str:
    """Return the extension in lower case, without the dot."""
    dot = name.rfind(".")
    return name[dot + 1 :].lower() if dot > name.rfind("/") + 1 else ""


def is_output(names: Collection[str]) -> bool:
    """Return whether the entries of a folder show that this project has written it, as a run or as images."""
    return OUTPUT_MARK in names or (_RUN_FILE in names and not _RUN_COMPANIONS.isdisjoint(names))


class ArchiveListing:
    """Decides which members of an archive are images, by the rules of a folder.

    The directory of a run is only known once all of its members are, so ``finish`` decides about those.
    """

    def __init__(self) -> None:
        self.listing = Listing()
        self._hidden: set[str] = set()
        self._marks: dict[str, set[str]] = {}

    def is_image(self, name: str) -> bool:
        """Count a regular file and return whether it is an image that can be read."""
        parts = name.split("/")
        for depth, part in enumerate(parts[:-1]):
            folder = "/".join(parts[: depth + 1])
            if is_hidden(part):
                if folder not in self._hidden:
                    self._hidden.add(folder)
                    self.listing.leave_out(Reason.hidden_folder, folder)
                return False
            if parts[depth + 1] in _RUN_COMPANIONS or parts[depth + 1] in (_RUN_FILE, OUTPUT_MARK):
                self._marks.setdefault(folder, set()).add(parts[depth + 1])
        if is_hidden(parts[-1]):
            self.listing.leave_out(Reason.hidden_file, name)
            return False
        return self.listing.is_image(name)

    def finish(self, located: Mapping[str, object]) -> tuple[list[str], Listing]:
        """Return the names of the images and the listing, without what lies in directories of runs.

        Args:
            located: the images by name.
        """
        runs = {folder for folder, marks in self._marks.items() if is_output(marks) and folder not in (".", "")}
        if not runs:
            return list(located), self.listing
        inside = {name for name in located if any(folder in runs for folder in _folders(name))}
        listing = self.listing.without(Reason.in_run, inside)
        return [name for name in located if name not in inside], listing


def _folders(name: str) -> Iterator[str]:
    position = name.find("/")
    while position > 0:
        yield name[:position]
        position = name.find("/", position + 1)
