"""Download of published weights over https, with resume and verification."""

import json
import logging
import os
import re
import urllib.error
from collections.abc import Callable
from pathlib import Path

from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.interop.released import RELEASED, Released
from ssl_zoo.io import open_url, write_atomic
from ssl_zoo.registry import did_you_mean

_log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 20
_HASH = re.compile(r'^"?([0-9a-f]{64})"?$')
_OPTIONAL = ("preprocessor_config.json",)


class DownloadError(ValueError):
    """Weights that can't be downloaded; the message has the address, the reason and the remedy."""


def download(name: str, folder: Path, progress: Progress | None = None) -> tuple[Path, Released]:
    """Download published weights by their name and return the file, or the folder of Hugging Face.

    What is complete already is not downloaded again, and an interrupted download continues.

    Args:
        folder: where the file, or a folder of its own, is written.
        progress: as for ``fetch``.

    Raises:
        DownloadError: an unknown name, no connection, or a file whose SHA-256 is another.
    """
    released = RELEASED.get(name)
    if released is None:
        known = ", ".join(RELEASED)
        raise DownloadError(f"no published weights are named {name!r}.{did_you_mean(name, RELEASED)} Known: {known}")
    place = folder / name if released.is_folder else folder
    place.mkdir(parents=True, exist_ok=True)
    for url in released.urls:
        file = place / url.rpartition("/")[2]
        try:
            fetch(url, file, sha256=released.sha256, progress=progress)
        except DownloadError:
            if file.name not in _OPTIONAL:
                raise
            _log.info("%s has no %s, which is optional", released.address, file.name)
    return (place if released.is_folder else file), released


def fetch(url: str, file: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Download one file, or continue an interrupted download of it.

    The content is verified against ``sha256``, and against the hash that a hub of Hugging Face announces. It gets the
    name ``file`` only when it is complete.

    Args:
        progress: called with the bytes that are there, and all bytes where the server tells their number.

    Raises:
        DownloadError: no connection, a refused or incomplete answer, or another SHA-256.
    """
    if file.is_file() and (sha256 is None or fingerprint(file)["sha256"] == sha256):
        return
    part, mark = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.part.json")
    try:
        announced = _receive(url, part, mark, progress)
    except urllib.error.HTTPError as error:
        remedy = "download it by other means and import the file" if error.code in (401, 403) else "try again later"
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; {remedy}") from error
    except OSError as error:
        raise DownloadError(
            f"{url} can't be downloaded ({error}); the same command continues where it stopped"
        ) from error
    found = fingerprint(part)["sha256"]
    wanted = sha256 or announced
    if wanted is not None and found != wanted:
        part.unlink()
        mark.unlink(missing_ok=True)
        raise DownloadError(f"{url} has the SHA-256 {found}, not {wanted}; what was downloaded is deleted, try again")
    os.replace(part, file)
    mark.unlink(missing_ok=True)
    _log.info("%s: %d bytes, SHA-256 %s", file, file.stat().st_size, found)


def _receive(url: str, part: Path, mark: Path, progress: Progress | None) -> str | None:
    """Append what is missing of a file, and return the SHA-256 that the server announces."""
    known = json.loads(mark.read_text()) if mark.is_file() and part.is_file() else {}
    have = part.stat().st_size if known else 0
    headers = {"Range": f"bytes={have}-", "If-Range": known["etag"]} if have else {}
    try:
        answer = open_url(url, headers)
    except urllib.error.HTTPError as error:
        if not have or error.code != 416:  # nothing is missing: the last download ended after its last byte
            raise
        return known["sha256"]
    with answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file, e.g. since it is another one by now
        etag, announced = answer.headers.get("ETag", ""), _HASH.match(answer.headers.get("X-Linked-Etag", ""))
        sha256 = announced[1] if announced else known.get("sha256") if have else None
        mark.unlink(missing_ok=True)
        if etag.startswith('"'):  # a weak tag can't tell whether the rest belongs to the beginning
            write_atomic(mark, json.dumps({"etag": etag, "sha256": sha256}))
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with open(part, "ab" if have else "wb") as target:
            while chunk := answer.read(_CHUNK):
                target.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")
    return sha256
