"""Local files: atomic writes, locks."""

import errno
import logging
import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system without locks


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until all processes that inherit it close it; False if another process holds the lock.

    On a file system without locks a warning is logged and True returned.
    """
    import fcntl  # not on every system

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s can't be locked (%s); let no other process write there", file.name, error.strerror)
    return True


def flush_to_disk(handle: int) -> None:
    """Flush an open file or directory to the disk."""
    if sys.platform == "darwin":  # where fsync leaves the data in the disk's own cache
        import fcntl

        try:
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):  # network file systems
                raise
    os.fsync(handle)


def fsync_path(path: Path) -> None:
    """Flush a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Replace ``path`` by ``content``: readers see the old or the complete new file, even after a power cut.

    Args:
        content: parts of an iterable are written one after another, and never joined.
    """
    # The temporary file is in the same directory: a rename across file systems is a copy, hence not atomic.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, str | bytes):
                file.write(content.encode() if isinstance(content, str) else content)
            else:
                file.writelines(content)
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def publish_directory(filled: Path, final: Path) -> None:
    """Flush a directory of files, then rename it to ``final``, which is either complete or missing."""
    for file in filled.iterdir():
        fsync_path(file)
    fsync_path(filled)
    os.replace(filled, final)
    fsync_path(final.parent)
