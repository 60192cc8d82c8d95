"""Files: the one path manager, and writes that are whole or not there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iopath.common.file_io import PathManager

PATHS = PathManager()


def fsync_path(path: Path) -> None:
    """Flush a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``: a reader sees the old file or the whole new one, also after a power cut."""
    # The temporary file lies in the same directory: a rename across file systems is a copy, hence not atomic.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


@contextmanager
def publish_directory(final: Path, temporary: Path) -> Iterator[Path]:
    """A fresh ``temporary`` directory to fill, renamed to ``final`` when the block ends without an error.

    Files and directory are flushed before the rename, so that ``final`` is whole or does not exist.
    """
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.iterdir():
        fsync_path(file)
    fsync_path(temporary)
    os.replace(temporary, final)
    fsync_path(final.parent)
