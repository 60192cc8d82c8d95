"""Image files in a folder or an archive, read without extraction.

Names from an archive are only compared and printed, never used as paths, so absolute names, ``..`` and links in it are
harmless.
"""

import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.decode import EXTENSIONS, DecodeLimits, PixelFormat, decode

MAX_UNPACKED_BYTES = 2 << 30  # default largest content of a compressed archive, which is held in memory
GZIP_ENDINGS = (".tar.gz", ".tgz")


class Files(ABC):
    """The image files under ``path``.

    Args:
        located: by name, what ``read`` finds its content with; names are "/"-separated, relative to the root.

    Attributes:
        names: sorted.
    """

    def __init__(self, path: Path, located: Mapping[str, Any]) -> None:
        self.path, self.names = path, sorted(located)
        self._located = [located[name] for name in self.names]

    @abstractmethod
    def read(self, position: int) -> bytes:
        """Return the content of ``names[position]``; at most the size in the file system or tar header is read."""

    def keep(self, positions: Sequence[int]) -> "Files":
        """Return only the files at ``positions``."""
        return type(self)(self.path, {self.names[position]: self._located[position] for position in positions})


def open_files(path: str, *, max_unpacked_bytes: int) -> Files:
    """Open the image files of a folder, a ``.tar``, or a ``.tar.gz``, which is unpacked into memory.

    Raises:
        ValueError: the path is missing or contains no image, or the archive is damaged or too large to unpack.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        files = _Folder(root, _walk(root))
    elif not root.exists():
        raise ValueError(f"there is no folder or tar archive {root}")
    elif root.name.endswith(GZIP_ENDINGS):
        files = _unpack(root, max_unpacked_bytes)
    elif root.name.endswith(".tar"):
        files = _index_tar(root)
    else:
        raise ValueError(f"{root} is neither a folder nor a .tar, .tar.gz or .tgz archive")
    if not files.names:
        raise ValueError(f"{root} contains no image file (looked for *{', *'.join(EXTENSIONS)}, in subfolders too)")
    return files


def read_images(
    paths: Sequence[str], count: int, limits: DecodeLimits, pixels: PixelFormat | None = None
) -> list[UInt8[Tensor, "C _ _"]]:
    """Decode the first ``count`` images of these files, folders and archives.

    Raises:
        ValueError: a path is missing or contains no image.
        CorruptImage: a file is no image or can't be decoded.
    """
    images = []
    for path in map(Path, paths):
        if path.is_file() and not path.name.endswith((".tar", *GZIP_ENDINGS)):
            images.append(decode(path.read_bytes(), str(path), limits, pixels))
            continue
        files = open_files(str(path), max_unpacked_bytes=MAX_UNPACKED_BYTES)
        names = files.names[: max(0, count - len(images))]
        images += [decode(files.read(number), f"{path}/{name}", limits, pixels) for number, name in enumerate(names)]
    return images[:count]


def _is_image(name: str) -> bool:
    parts = name.split("/")
    is_hidden = any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
    return not is_hidden and name.lower().endswith(EXTENSIONS)


class _Folder(Files):
    """Files of a folder; each is located by its path in it."""

    def read(self, position: int) -> bytes:
        return (self.path / self._located[position]).read_bytes()


def _walk(root: Path) -> dict[str, str]:
    """Find the relative names of all images below ``root``; follows links, but visits each real directory once."""
    found, visited = {}, set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories.sort()  # so that the choice between two links to one directory does not depend on the disk
        relative = os.path.relpath(directory, root).replace(os.sep, "/")
        for file in files:
            name = file if relative == "." else f"{relative}/{file}"
            if _is_image(name):
                found[name] = name
    return found


class _Tar(Files):
    """Members of an uncompressed archive, located by offset and size."""

    def read(self, position: int) -> bytes:
        offset, size = self._located[position]
        with open(self.path, "rb", buffering=0) as file:  # opened per read (10 us): processes never share an offset
            return os.pread(file.fileno(), size, offset)


class _Memory(Files):
    """Members of a compressed archive, unpacked into memory."""

    def read(self, position: int) -> bytes:
        return self._located[position]


def _index_tar(path: Path) -> Files:
    members = {}
    size = path.stat().st_size

    def note(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if member.offset_data + member.size > size:
            raise ValueError(f"{path} ends in the middle of member {member.name!r}; copy or download it again")
        members[member.name] = (member.offset_data, member.size)

    _each_image(path, "r:", note)
    return _Tar(path, members)


def _unpack(path: Path, max_unpacked_bytes: int) -> Files:
    members, total = {}, 0

    def keep(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        nonlocal total
        total += member.size
        if total > max_unpacked_bytes:
            raise ValueError(
                f"{path} unpacks to more than data.max_unpacked_bytes={max_unpacked_bytes} bytes of memory; "
                "gunzip it once: an uncompressed .tar is read in place"
            )
        members[member.name] = tar.extractfile(member).read()

    _each_image(path, "r|gz", keep)
    return _Memory(path, members)


def _each_image(path: Path, mode: str, visit: Callable[[tarfile.TarFile, tarfile.TarInfo], None]) -> None:
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and _is_image(member.name):
                    visit(tar, member)
                tar.members = []  # otherwise tarfile keeps every header: 1 GB for the training images of ImageNet
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read as a tar archive: {type(error).__name__}: {error}") from error
