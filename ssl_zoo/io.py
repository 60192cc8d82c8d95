"""Files: the path manager, atomic writes, locks."""

import errno
import logging
import os
import re
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathHandler, PathManager

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system without locks
_TIMEOUT_S = 60.0  # a connection that receives nothing for this long is closed


class Paths(PathManager):
    """iopath's manager, which opens local files and URLs with a handler; plug-ins register more handlers."""

    def is_remote(self, path: str) -> bool:
        """Return whether a handler reads the path, not the local file system.

        Raises:
            ValueError: the path has a scheme without a handler. iopath would open it as a file, and other readers of
                shards would run it as a command.
        """
        scheme = _SCHEME.match(path)
        if scheme is None:
            return False
        prefixes = sorted(filter(None, self._path_handlers))
        if path.startswith(tuple(prefixes)):
            return True
        raise ValueError(
            f"{path}: there is no handler for {scheme[0]}; permitted are local paths, "
            f"{', '.join(prefixes)} and schemes that a plug-in registers by "
            "ssl_zoo.io.PATHS.register_handler"
        )


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the hash that a hub of Hugging Face announces in the first answer alone."""

    _HASH = "X-Linked-Etag"

    def http_error_302(self, request: Any, content: Any, code: int, message: str, headers: Any) -> Any:
        answer = super().http_error_302(request, content, code, message, headers)
        if answer is not None and self._HASH in headers and self._HASH not in answer.headers:
            answer.headers[self._HASH] = headers[self._HASH]
        return answer

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Web(PathHandler):
    """Reads http and https as a stream. iopath's own handler has no timeout and also knows ftp."""

    def __init__(self) -> None:
        super().__init__()
        # Handlers for ftp:, file: and data: are left out, so that a redirect can't lead there.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            _Redirect,
            urllib.request.HTTPErrorProcessor,
            urllib.request.UnknownHandler,
        ):
            self._opener.add_handler(handler())

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO[bytes]:
        if mode != "rb":
            raise ValueError(f"{path}: URLs can only be opened in mode rb, not in mode {mode}")
        return self.request(path, {})

    def request(self, url: str, headers: Mapping[str, str]) -> IO[bytes]:
        return self._opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_TIMEOUT_S)


_WEB = _Web()
PATHS = Paths()
PATHS.register_handler(_WEB)


def open_url(url: str, headers: Mapping[str, str]) -> IO[bytes]:
    """Open an http or https address with request headers, following redirects to such addresses alone.

    Raises:
        OSError: no connection, or a status that is no success (``urllib.error.HTTPError``).
    """
    return _WEB.request(url, headers)


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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``: readers see the old or the complete new file, even after a power cut."""
    # The temporary file is in the same directory: a rename across file systems is a copy, hence not atomic.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
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
