"""Image files in a folder or an archive, read without extraction.

Names from an archive are only compared and printed, never used as paths, so absolute names, ``..`` and links in it are
harmless.
"""

import errno
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.data.corrupt import Refusal
from ssl_zoo.data.decode import EXTENSIONS
from ssl_zoo.data.listing import ArchiveListing, Listing, Reason
from ssl_zoo.data.names import printable
from ssl_zoo.data.walk import list_folder

MAX_UNPACKED_BYTES = 2 << 30  # default largest content of a compressed archive, which is held in memory
GZIP_ENDINGS = (".tar.gz", ".tgz")


# Errors of this process or machine; all others concern the file.
_NOT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Files(ABC):
    """The image files under ``path``.

    Args:
        located: by name, what ``read`` finds its content with; names are "/"-separated, relative to the root.

    Attributes:
        names: sorted; bytes that are no UTF-8 are surrogates, as Python's file functions take them.
        listing: counts of the images and of everything that is left out.
    """

    def __init__(self, path: Path, located: Mapping[str, Any], listing: Listing) -> None:
        self.path, self.names, self.listing = path, sorted(located), listing
        self._located = [located[name] for name in self.names]

    @abstractmethod
    def read(self, position: int, max_bytes: int) -> bytes:
        """Return the content of ``names[position]``; at most the size in the file system or tar header is read.

        Raises:
            CorruptImage: the file can't be read, or is larger than ``max_bytes``.
        """

    def keep(self, positions: Sequence[int], listing: Listing | None = None) -> "Files":
        """Return only the files at ``positions``, with another listing if one is given."""
        located = {self.names[position]: self._located[position] for position in positions}
        return type(self)(self.path, located, listing or self.listing)


def open_files(path: str, *, max_unpacked_bytes: int) -> Files:
    """Open the image files of a folder, a ``.tar``, or a ``.tar.gz``, which is unpacked into memory.

    Raises:
        ValueError: the path is missing or contains no image, or the archive is damaged or too large to unpack.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        try:
            names, listing = list_folder(root)
        except OSError as error:
            raise ValueError(f"{root} can't be listed: {error.strerror}") from error
        files = _Folder(root, dict(zip(names, names, strict=True)), listing)
    elif not root.exists():
        raise ValueError(f"there is no folder or tar archive {root}")
    elif root.name.endswith(GZIP_ENDINGS):
        files = _unpack(root, max_unpacked_bytes)
    elif root.name.endswith(".tar"):
        files = _index_tar(root)
    else:
        raise ValueError(f"{root} is neither a folder nor a .tar, .tar.gz or .tgz archive")
    if not files.names:
        there = files.listing.left_out_text()
        raise ValueError(
            f"{root} contains no image file (looked for *{', *'.join(EXTENSIONS)}, in subfolders too)"
            f"{f'; {there}' if there else ''}"
        )
    return files


class _Folder(Files):
    """Files of a folder; each is located by its path in it."""

    def read(self, position: int, max_bytes: int) -> bytes:
        return read_file(f"{self.path}/{self._located[position]}", printable(self.names[position]), max_bytes)


def read_file(path: str, name: str, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        CorruptImage: under ``name``, of a file that can't be read, is a pipe or device, or is too large.
    """
    try:
        # Without O_NONBLOCK a pipe that has taken the place of the file would make this wait forever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refusal.not_regular.of(name)
            _check_bytes(status.st_size, name, max_bytes)
            return file.readall()
    except OSError as error:
        if error.errno in _NOT_OF_THE_FILE:
            raise
        raise Refusal.unreadable.of(name, error=error.strerror) from None


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise Refusal.too_many_bytes.of(name, bytes=size, limit=max_bytes)


class _Tar(Files):
    """Members of an uncompressed archive, located by offset and size."""

    def read(self, position: int, max_bytes: int) -> bytes:
        offset, size = self._located[position]
        _check_bytes(size, printable(self.names[position]), max_bytes)
        with open(self.path, "rb", buffering=0) as file:  # opened per read (10 us): processes never share an offset
            return os.pread(file.fileno(), size, offset)


class _Memory(Files):
    """Members of a compressed archive, unpacked into memory."""

    def read(self, position: int, max_bytes: int) -> bytes:
        return self._located[position]


def _index_tar(path: Path) -> Files:
    size = path.stat().st_size

    def locate(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[int, int]:
        if member.offset_data + member.size > size:
            raise ValueError(f"{path} ends in the middle of member {printable(member.name)}; copy or download it again")
        return member.offset_data, member.size

    return _Tar(path, *_images_of(path, "r:", locate))


def _unpack(path: Path, max_unpacked_bytes: int) -> Files:
    total = 0

    def keep(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        nonlocal total
        total += member.size
        if total > max_unpacked_bytes:
            raise ValueError(
                f"{path} unpacks to more than data.max_unpacked_bytes={max_unpacked_bytes} bytes of memory; "
                "gunzip it once: an uncompressed .tar is read in place"
            )
        return tar.extractfile(member).read()

    return _Memory(path, *_images_of(path, "r|gz", keep))


def _images_of(
    path: Path, mode: str, locate: Callable[[tarfile.TarFile, tarfile.TarInfo], Any]
) -> tuple[dict[str, Any], Listing]:
    """Locate the images of an archive; of members of the same name the last one counts, as when it is unpacked."""
    located: dict[str, Any] = {}
    archive = ArchiveListing()
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                tar.members = []  # otherwise tarfile keeps every header: 1 GB for the training images of ImageNet
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    is_link = member.issym() or member.islnk()
                    archive.listing.leave_out(Reason.archive_link if is_link else Reason.special, member.name)
                elif archive.is_image(member.name):
                    if member.name in located:
                        archive.listing.move_out(Reason.replaced, [member.name])
                    located[member.name] = locate(tar, member)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read as a tar archive: {type(error).__name__}: {error}") from error
    names, listing = archive.finish(located)
    return {name: located[name] for name in names}, listing
