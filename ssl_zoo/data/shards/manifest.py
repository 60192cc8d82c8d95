"""The manifest of a set of shards, ``manifest.json``."""

import hashlib
import http.client
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssl_zoo.io import PATHS

MANIFEST_NAME, INDEX_NAME = "manifest.json", "index.safetensors"
FORMAT = "ssl_zoo shards 1"
MAX_MANIFEST_BYTES = 256 << 20
_MAX_LEFT_OUT_NAMES = 20  # per shard
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LeftOut:
    """A sample that is not in the shards, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class FileInfo:
    """Size and hash of a file; ``name`` is a file name beside the manifest, or a full path elsewhere."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.name.startswith("."):
            raise ValueError(f"{self.name!r} is no name of a file")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.name} has no sha256 of 64 hexadecimal digits")
        _count(f"the bytes of {self.name}", self.bytes)


@dataclass(frozen=True)
class ShardInfo(FileInfo):
    """A shard, the number of its usable samples, and the samples left out, of which only the first are named."""

    samples: int
    num_left_out: int = 0
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _count(f"the samples of {self.name}", self.samples)
        _count(f"the samples left out of {self.name}", self.num_left_out)

    @classmethod
    def of(cls, file: FileInfo, samples: int, left_out: Sequence[LeftOut]) -> "ShardInfo":
        return cls(file.name, file.bytes, file.sha256, samples, len(left_out), tuple(left_out[:_MAX_LEFT_OUT_NAMES]))


@dataclass(frozen=True)
class LabelSet:
    """A label set; ``classes`` is empty if their names are unknown."""

    num_classes: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A set of shards.

    Attributes:
        source: description of the shards' input.
        plan: digest of all inputs and options; a later run keeps shards only if it is the same.
        image_size: height and width if all images share them.
        label_sets: the first is the default.
    """

    source: str
    plan: str
    shards: tuple[ShardInfo, ...]
    index: FileInfo
    image_size: tuple[int, int] | None = None
    label_sets: Mapping[str, LabelSet] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def text(self) -> str:
        """Return the content of ``manifest.json``."""
        totals = {"samples": self.num_samples, "bytes": sum(shard.bytes for shard in self.shards)}
        return json.dumps({"format": FORMAT, **totals, **asdict(self)}, indent=1) + "\n"


def read_manifest(path: str) -> Manifest:
    """Read the manifest at a local path or an address.

    Raises:
        ValueError: there is no manifest, or it is damaged or of another format.
    """
    try:
        with PATHS.open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"{path} can't be read ({type(error).__name__}: {error}). Shards need a manifest; write one for existing "
            "shards with python tools/make_shards.py --index SHARDS... FOLDER"
        ) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes, so it is no manifest of shards")
    try:
        return _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no manifest of shards: {type(error).__name__}: {error}") from error


def file_info(path: Path) -> FileInfo:
    """Measure size and hash of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return FileInfo(path.name, path.stat().st_size, digest.hexdigest())


def _parse(given: Any) -> Manifest:
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    image_size = given["image_size"]
    manifest = Manifest(
        source=str(given["source"]),
        plan=str(given["plan"]),
        shards=tuple(shard_info(shard) for shard in given["shards"]),
        index=FileInfo(**given["index"]),
        image_size=None if image_size is None else (int(image_size[0]), int(image_size[1])),
        label_sets={
            str(name): LabelSet(
                _count(f"num_classes of {name}", labels["num_classes"]), tuple(map(str, labels["classes"]))
            )
            for name, labels in given["label_sets"].items()
        },
    )
    names = [shard.name for shard in manifest.shards]
    if not names or len(set(names)) < len(names):
        raise ValueError("it lists no shard, or one twice")
    return manifest


def shard_info(given: Mapping[str, Any]) -> ShardInfo:
    """Parse a shard's JSON.

    Raises:
        ValueError, TypeError, KeyError: a field is missing, unknown or invalid.
    """
    return ShardInfo(**{**given, "left_out": tuple(LeftOut(**sample) for sample in given["left_out"])})


def _count(what: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{what} are {value!r}, no integer of at least 0")
    return value
