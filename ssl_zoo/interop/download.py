"""Download of published weights: by iopath from an address, by huggingface_hub from the Hugging Face Hub."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.interop.released import RELEASED, Released
from ssl_zoo.io import PATHS, DownloadError
from ssl_zoo.registry import did_you_mean

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HASH = re.compile(r"[0-9a-f]{64}")
_CONFIGS = ("config.json", "preprocessor_config.json")
_FORMATS = {  # the preferred one first
    ".safetensors": ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    ".bin": ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
}


@dataclass(frozen=True)
class Downloaded:
    """Published weights on this machine.

    Attributes:
        path: a file, or a folder of Hugging Face.
        method: that trained them, None where it is read from the weights.
        source: entries of a manifest: ``url``; of the hub also ``file`` or folder and ``revision``, and ``licence``
            where the weights are not from the method's authors.
    """

    path: Path
    method: str | None
    source: Mapping[str, str] = field(default_factory=dict)


def download(name: str, cache: Path | None = None) -> Downloaded:
    """Download published weights into the cache; what is there already is verified and not downloaded again.

    Args:
        name: of the published weights, or ``owner/name`` of a folder on the Hugging Face Hub, with ``@revision``.
        cache: in place of the caches of iopath and huggingface_hub, which their variables of the environment set.

    Raises:
        DownloadError: an unknown name, no connection, a refused request, or a file whose SHA-256 is another.
    """
    released = _find(name)
    if released.url is not None:
        place = None if cache is None else str(cache)
        path = PATHS.get_local_path(released.url, cache_dir=place, sha256=released.sha256)
        return Downloaded(Path(path), released.method, {"url": released.address})
    path, snapshot = _from_hub(released, cache)
    source = {"file": released.file or released.repo, "url": released.address, "revision": snapshot.name}
    if name not in RELEASED:
        source["licence"] = f"unknown; see {released.address}"
    return Downloaded(path, released.method, source)


def _find(name: str) -> Released:
    if name in RELEASED:
        return RELEASED[name]
    of_hub = _HUB_NAME.fullmatch(name)
    if of_hub is None:
        known = ", ".join(RELEASED)
        raise DownloadError(
            f"no published weights are named {name!r}.{did_you_mean(name, RELEASED)} Known: {known}; OWNER/NAME is a "
            "folder on the Hugging Face Hub"
        )
    released = Released(None, "a folder on the Hugging Face Hub", repo=of_hub["repo"])
    return replace(released, revision=of_hub["revision"]) if of_hub["revision"] else released


def _from_hub(released: Released, cache: Path | None) -> tuple[Path, Path]:
    """Return the path of a file or folder, and the folder of its commit in the cache."""
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        if released.file is None:
            path = snapshot = _folder(released, cache)
        else:
            path, snapshot = _file(released, cache)
    except HFValidationError as error:
        raise DownloadError(f"{released.repo}: {_first_line(error)}") from error
    except (OSError, HTTPError) as error:  # transport errors of its HTTP library are no OSError
        raise DownloadError(_explained(released, error)) from error
    _verify(path, released.sha256)
    return path, snapshot


def _file(released: Released, cache: Path | None) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(released.repo, released.file, revision=released.revision, cache_dir=cache))
    return path, path.parents[released.file.count("/")]


def _folder(released: Released, cache: Path | None) -> Path:
    """Download the configuration and one format of the weights, all of the same commit."""
    from huggingface_hub import snapshot_download

    revision = released.revision
    for ending, names in _FORMATS.items():
        wanted = [*_CONFIGS, *names]
        folder = Path(snapshot_download(released.repo, revision=revision, cache_dir=cache, allow_patterns=wanted))
        if any(path.suffix == ending for path in folder.iterdir()):
            return folder
        revision = folder.name  # the commit
    known = " or ".join(names[0] for names in _FORMATS.values())
    raise DownloadError(f"{released.address} has no {known}; networks are read from folders as transformers has them")


def _verify(path: Path, sha256: str | None) -> None:
    """Compare what the hub's cache holds with the hashes that the hub announced, which are the names of its blobs.

    huggingface_hub compares sizes alone.

    Raises:
        DownloadError: another SHA-256; the file is deleted.
    """
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        blob = Path(os.path.realpath(file))
        wanted = sha256 or (blob.name if _HASH.fullmatch(blob.name) else None)
        found = fingerprint(blob)["sha256"] if wanted is not None else None
        if found != wanted:
            file.unlink()
            blob.unlink(missing_ok=True)
            raise DownloadError(f"{file} has the SHA-256 {found}, not {wanted}; it is deleted, try again")


def _explained(released: Released, error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the hub was not asked, or what it answered
    reason = _first_line(error)
    if not isinstance(error, HfHubHTTPError):
        return (
            f"{released.address} can't be downloaded ({reason}). Check the connection, the proxies (https_proxy), "
            "HF_ENDPOINT and HF_HUB_OFFLINE; the same command continues with the files that are missing"
        )
    if error.response.status_code in (401, 403):
        remedy = "it is private or gated, or does not exist: accept its terms on its page and set HF_TOKEN"
    else:
        remedy = "check owner, name and revision" if error.response.status_code == 404 else "try again later"
    return f"{released.address}: {reason}; {remedy}"


def _first_line(error: BaseException) -> str:
    """Return the first line of a message; those of huggingface_hub have many, with an empty one in between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
