"""Local and remote shards; remote ones are copied into a cache on first access."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand
from iopath.common.file_io import file_lock

from ssl_zoo.data.shards.manifest import MANIFEST_NAME, FileInfo, Manifest, file_info, read_manifest
from ssl_zoo.io import PATHS, flush_to_disk, fsync_path

_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MAX_SHARDS = 1_000_000
_ATTEMPTS = 3  # to copy a shard; a server may be busy, a connection may break
_PAUSE_S = 2.0  # after the first attempt, and twice as long after each further one
_CHUNK_BYTES = 1 << 20
MAX_SHARD_BYTES = 1 << 40  # of a shard without a manifest


@dataclass(frozen=True)
class Shards:
    """A manifest, its location, and the shards of it that are used; the same in every process.

    Attributes:
        base: folder or address of the manifest.
        cache: folder for copies of remote files.
        numbers: positions of the used shards in the manifest.
    """

    manifest: Manifest
    base: str
    cache: Path
    numbers: Sequence[int]

    def place(self, file: FileInfo) -> str:
        """Return path or address of a file of the manifest."""
        if PATHS.is_remote(file.name):
            return file.name
        if os.path.isabs(file.name) and not PATHS.is_remote(self.base):
            return file.name
        if "/" in file.name or "\\" in file.name:
            raise ValueError(f"the manifest in {self.base} names {file.name}, which does not lie beside it")
        return f"{self.base}/{file.name}"

    def local(self, file: FileInfo) -> Path:
        """Return a local path of the file, which is copied first if it is remote, and check its size.

        Raises:
            ValueError: the file is missing, or its size or hash differs from the manifest's.
        """
        place = self.place(file)
        path = self._cached(place, file) if PATHS.is_remote(place) else Path(place)
        if not path.is_file():
            raise ValueError(f"{path} is missing, but is listed in the manifest in {self.base}")
        if path.stat().st_size != file.bytes:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, not the {file.bytes} of the manifest in {self.base}; copy or "
                "make it again (python tools/make_shards.py --check FOLDER tests all shards of a folder)"
            )
        return path

    def _cached(self, place: str, file: FileInfo) -> Path:
        path = self.cache / _cached_name(place, file.sha256)
        if not path.is_file():
            with file_lock(str(path)):  # processes of all ranks may request it at the same time
                if not path.is_file():
                    _download(place, self.cache, partial(_compare, file), file.bytes, file.bytes)
        return path


def open_shards(path: str, cache: Path) -> Shards:
    """Open shards at a path or address: a folder with a manifest, a manifest, or ``folder/name-{000..123}.tar``.

    Raises:
        ValueError: there is no manifest, the pattern has shards that are not in it, or the URL scheme has no handler.
    """
    remote = PATHS.is_remote(path)
    path = path.rstrip("/") if remote else str(Path(path).expanduser())
    if path.endswith(".json"):
        base = path.rpartition("/")[0] or "."
        return _all(read_manifest(path), base, cache)
    if not path.endswith((".tar", "}")):
        return _all(read_manifest(f"{path}/{MANIFEST_NAME}"), path, cache)
    places = expand(path)
    base = places[0].rpartition("/")[0] or "."
    manifest = read_manifest(f"{base}/{MANIFEST_NAME}")
    number = {name: position for position, name in enumerate(shard.name for shard in manifest.shards)}
    names = [place.rpartition("/")[2] for place in places]
    missing = [place for place, name in zip(places, names, strict=True) if number.get(name) is None]
    elsewhere = [place for place in places if (place.rpartition("/")[0] or ".") != base]
    if missing or elsewhere:
        raise ValueError(
            f"{len(missing) + len(elsewhere)} of the shards {path} are not in {base}/{MANIFEST_NAME}, e.g. "
            f"{(missing + elsewhere)[0]}"
        )
    return Shards(manifest, base, cache, tuple(sorted({number[name] for name in names})))


def expand(pattern: str) -> list[str]:
    """Expand the braces of a pattern: ``{000..123}`` is a range, ``{a,b}`` a list.

    Raises:
        ValueError: a brace is unbalanced, or there are more than a million paths.
    """
    count = 1
    for low, high in _RANGE.findall(pattern):
        count *= abs(int(high) - int(low)) + 1
    if count > _MAX_SHARDS:
        raise ValueError(f"{pattern} stands for {count} shards; at most {_MAX_SHARDS} are possible")
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ValueError(f"{pattern}: a brace has no partner; shards 000 to 123 are written {{000..123}}") from error


def fetch(place: str, cache: Path) -> tuple[Path, FileInfo]:
    """Return a local path, size and hash of a shard without a manifest.

    Raises:
        ValueError: the shard is missing or can't be copied.
    """
    if not PATHS.is_remote(place):
        path = Path(place).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no shard {path}")
        return path, file_info(path)
    found: list[FileInfo] = []
    path = _download(place, cache, found.append, 1, MAX_SHARD_BYTES)
    return path, found[0]


def default_cache() -> Path:
    """Return the default folder for copies of remote shards."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl_zoo" / "shards"


def _all(manifest: Manifest, base: str, cache: Path) -> Shards:
    return Shards(manifest, base, cache, tuple(range(len(manifest.shards))))


def _compare(expected: FileInfo, found: FileInfo) -> None:
    if (found.bytes, found.sha256) != (expected.bytes, expected.sha256):
        size = f"at least {found.bytes}" if found.bytes > expected.bytes else str(found.bytes)
        raise ValueError(
            f"{_without_query(found.name)} is not the file of the manifest: {size} of {expected.bytes} "
            f"bytes, sha256 {found.sha256[:12]}... instead of {expected.sha256[:12]}..."
        )


def _cached_name(place: str, sha256: str) -> str:
    # The hash distinguishes shards that were written again under the same address.
    return f"{sha256[:16]}-{Path(_without_query(place)).name}"


def _download(place: str, folder: Path, check: Callable[[FileInfo], None], min_bytes: int, max_bytes: int) -> Path:
    """Copy a remote file into the cache, where it appears only once it is complete and passes the check."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        file = _receive_with_retries(place, temporary, min_bytes, max_bytes)
        check(file)
        path = folder / _cached_name(place, file.sha256)
        os.replace(temporary, path)
        fsync_path(folder)
        return path
    finally:
        temporary.unlink(missing_ok=True)


def _receive_with_retries(place: str, target: Path, min_bytes: int, max_bytes: int) -> FileInfo:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _receive(place, target, min_bytes, max_bytes)
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if attempt == _ATTEMPTS or final:
                raise ValueError(f"{_without_query(place)} can't be copied: {type(error).__name__}: {error}") from error
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _receive(place: str, target: Path, min_bytes: int, max_bytes: int) -> FileInfo:
    """Try once; reads at most one byte more than ``max_bytes``, which detects a longer file."""
    digest, received = hashlib.sha256(), 0
    with PATHS.open(place, "rb") as remote, open(target, "wb") as local:
        while chunk := remote.read(min(_CHUNK_BYTES, max_bytes + 1 - received)):
            received += len(chunk)
            digest.update(chunk)
            local.write(chunk)
        local.flush()
        flush_to_disk(local.fileno())
        missing = max(min_bytes - received, getattr(remote, "length", None) or 0)  # http counts the remaining bytes
        if missing > 0 and received <= max_bytes:
            raise OSError(f"the connection ended {missing} bytes early")
    return FileInfo(place, received, digest.hexdigest())


def _without_query(place: str) -> str:
    return place.partition("?")[0]  # queries of signed addresses are secrets
