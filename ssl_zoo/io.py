"""Files: the one path manager, and writes that are whole or not there."""

import os
import re
import shutil
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from iopath.common.file_io import NativePathHandler, PathHandler, PathManager
from safetensors import SafetensorError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SILENCE_S = 60.0  # a server that sends nothing for so long counts as gone


class Paths(PathManager):
    """iopath's manager, which opens local files and whatever has a handler; plug-ins register more of these."""

    def __init__(self) -> None:
        super().__init__()
        self._prefixes: set[str] = set()

    def register_handler(self, handler: PathHandler, allow_override: bool = True) -> None:
        super().register_handler(handler, allow_override)
        if not isinstance(handler, NativePathHandler):
            self._prefixes.update(handler._get_supported_prefixes())

    def is_remote(self, path: str) -> bool:
        """Whether a handler reads the path, not the local file system.

        Raises:
            ValueError: the path has a scheme without a handler. iopath would take it for a file, other readers of
                shards for a command to run.
        """
        scheme = _SCHEME.match(path)
        if scheme is None:
            return False
        if path.startswith(tuple(self._prefixes)):
            return True
        raise ValueError(
            f"{path}: nothing reads {scheme[0]} here; permitted are local paths, {', '.join(sorted(self._prefixes))} "
            "and what a plug-in registers by ssl_zoo.io.PATHS.register_handler"
        )


class _Web(PathHandler):
    """Reads http and https as a stream. iopath's own handler has no timeout and also knows ftp."""

    def __init__(self) -> None:
        super().__init__()
        # Without the handlers for ftp:, file: and data:, so that a redirect can't lead there.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.UnknownHandler,
        ):
            self._opener.add_handler(handler())

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO[bytes]:
        if mode != "rb":
            raise ValueError(f"{path}: the web is read as bytes (mode rb), not in mode {mode}")
        return self._opener.open(path, timeout=_SILENCE_S)


PATHS = Paths()
PATHS.register_handler(_Web())


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

    Raises:
        OSError: it can't be written, e.g. for want of room; what was written of it is removed again.
    """
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            fsync_path(file)
        fsync_path(temporary)
        os.replace(temporary, final)
        fsync_path(final.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{final} can't be written: {error}") from error
