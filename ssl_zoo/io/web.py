"""Files from http and https: a handler of iopath that streams them, or downloads them into iopath's cache."""

import hashlib
import logging
import os
import posixpath
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from portalocker.exceptions import LockException
from tqdm import tqdm

_log = logging.getLogger(__name__)
_TIMEOUT_S = 60.0  # a connection that receives nothing for this long is closed
_CHUNK = 1 << 20
_REMEDIES = {
    401: "download the file by other means",
    403: "download the file by other means",
    404: "there is no such file, or it has moved; look for its address on the pages of its authors",
    407: "the proxy wants a name and a password: http_proxy=http://NAME:PASSWORD@HOST:PORT",
}


class DownloadError(ValueError):
    """A file that can't be downloaded; the message has the address, the reason and the remedy."""


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the hash that a hub of Hugging Face announces in the first answer alone."""

    _HASH = "X-Linked-Etag"

    def http_error_302(self, request: Any, content: Any, code: int, message: str, headers: Any) -> Any:
        answer = super().http_error_302(request, content, code, message, headers)
        if answer is not None and self._HASH in headers and self._HASH not in answer.headers:
            answer.headers[self._HASH] = headers[self._HASH]
        return answer

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class WebHandler(PathHandler):
    """Opens http and https as a stream, and downloads whole files for ``get_local_path``.

    iopath's own handler has no timeout, starts an interrupted download again, verifies nothing, keeps one file for all
    hosts whose addresses have the same path, and also knows ftp.
    """

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
        return self._request(path, {})

    def _get_local_path(
        self,
        path: str,
        force: bool = False,
        cache_dir: str | None = None,
        sha256: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the file in the cache, which is downloaded first where it is missing or ``sha256`` is another.

        An interrupted download continues. The content is verified against ``sha256``, or the hash that a hub of Hugging
        Face announces, and gets its name only when it is complete.

        Args:
            force: download again.
            cache_dir: in place of iopath's, which is ``$FVCORE_CACHE`` or ``~/.torch/iopath_cache``.

        Raises:
            DownloadError: no connection, a refused or incomplete answer, or another SHA-256.
        """
        self._check_kwargs(kwargs)
        file = _place(path, Path(cache_dir or get_cache_dir()).expanduser())
        try:
            with file_lock(str(file)):
                if force or not file.is_file() or (sha256 is not None and _sha256(file) != sha256):
                    self._download(path, file, sha256)
        except LockException as error:
            raise DownloadError(
                f"{path}: {file}.lock can't be locked ({error}): another process downloads the file, or the file "
                "system has no locks"
            ) from error
        return str(file)

    def _request(self, url: str, headers: Mapping[str, str]) -> Any:
        return self._opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_TIMEOUT_S)

    def _download(self, url: str, file: Path, sha256: str | None) -> None:
        part, mark = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.part.mark")
        try:
            announced = self._receive(url, part, mark)
        except urllib.error.HTTPError as error:
            remedy = _REMEDIES.get(error.code, "try again later")
            raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; {remedy}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise DownloadError(
                f"{url} can't be downloaded{_through_proxy(url)} ({reason}); the same command continues where it "
                "stopped"
            ) from error
        found, wanted = _sha256(part), sha256 or announced
        if wanted is not None and found != wanted:
            part.unlink()
            mark.unlink(missing_ok=True)
            raise DownloadError(
                f"{url} has the SHA-256 {found}, not {wanted}; what was downloaded is deleted, try again"
            )
        os.replace(part, file)
        mark.unlink(missing_ok=True)
        _log.info("%s: %d bytes, SHA-256 %s", file, file.stat().st_size, found)

    def _receive(self, url: str, part: Path, mark: Path) -> str | None:
        """Append what is missing of a file, and return the SHA-256 that the server announces."""
        etag, announced = _read_mark(mark) if part.is_file() else ("", None)
        have = part.stat().st_size if etag else 0
        headers = {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
        try:
            answer = self._request(url, headers)
        except urllib.error.HTTPError as error:
            if not have or error.code != 416:  # nothing is missing: the last download ended after its last byte
                raise
            return announced
        with answer:
            if answer.status != 206:
                have, announced = 0, None  # the server sends the whole file, e.g. since it is another one by now
            linked = answer.headers.get("X-Linked-Etag", "").strip('"')
            announced = linked if len(linked) == 64 else announced
            etag = answer.headers.get("ETag", "")
            mark.unlink(missing_ok=True)
            if etag.startswith('"'):  # a weak tag can't show whether the rest belongs to the beginning
                mark.write_text(f"{etag}\n{announced or ''}\n")
            length = answer.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            # No bar where nobody looks at a terminal.
            bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None)
            with open(part, "ab" if have else "wb") as target, bar:
                while chunk := answer.read(_CHUNK):
                    target.write(chunk)
                    have += len(chunk)
                    bar.update(len(chunk))
        if total is not None and have < total:
            raise OSError(f"the connection ended after {have} of {total} bytes")
        return announced


def _place(url: str, cache: Path) -> Path:
    """Return the file of an address in a cache: folders of host and path, as in ``cache/host/folder/name``."""
    address = urlsplit(url)
    host = address.netloc.rpartition("@")[2]
    inner = posixpath.normpath(f"/{unquote(address.path)}").lstrip("/")
    query = f"?{quote(address.query, safe='=&')}" if address.query else ""
    if inner in ("", "."):
        raise DownloadError(f"{url} is no address of a file")
    return cache / host / f"{inner}{query}"


def _read_mark(mark: Path) -> tuple[str, str | None]:
    """Return the tag of an interrupted download and its announced hash; a torn tag is answered with the whole file."""
    lines = mark.read_text().splitlines() if mark.is_file() else []
    etag, announced = [*lines, "", ""][:2]
    return etag, announced or None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        for chunk in iter(partial(content.read, 1 << 24), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _through_proxy(url: str) -> str:
    """Return in words which proxy the environment sets for an address, without a password in it."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    proxy = urllib.request.getproxies().get(scheme)
    if proxy is None or urllib.request.proxy_bypass(host):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2]} of {scheme}_proxy"
