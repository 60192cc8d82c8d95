"""The index of shards: location and labels of every sample, read once from the tar headers and stored as a file."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import safetensors
import torch
from jaxtyping import Int, UInt8
from safetensors.torch import load, save
from torch import Tensor

from ssl_zoo.data.listing import READ_AS
from ssl_zoo.data.names import is_hidden, printable
from ssl_zoo.data.shards.manifest import LeftOut
from ssl_zoo.data.shards.tar import Member, RefusedArchive, members

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
MEMBER_TYPES = (*IMAGE_TYPES, "cls", "json", "txt")  # nothing that could contain code or a decompression bomb
_MAX_CLS_BYTES, _MAX_JSON_BYTES = 32, 1 << 20
_MAX_LABEL = 1 << 24
_LABELS = "labels."  # prefix of label sets among the tensors


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample of a shard: its image member and its labels."""

    key: bytes
    image: Member
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Index:
    """The samples under ids 0..n-1 as columns, which take a few dozen bytes per sample."""

    shard: Int[Tensor, "n"]
    offset: Int[Tensor, "n"]  # of the image, in bytes
    size: Int[Tensor, "n"]  # of the image, in bytes
    name_stop: Int[Tensor, "n"]  # end of each name in ``names``, which is the start of the next one
    names: UInt8[Tensor, "bytes"]  # concatenated names of the members
    labels: Mapping[str, Int[Tensor, "n"]] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[tuple[int, Entry]], label_sets: Iterable[str]) -> "Index":
        """Build the columns from pairs of a shard's number and an entry of it."""
        names = [entry.image.name for _, entry in entries]
        return cls(
            shard=torch.tensor([number for number, _ in entries], dtype=torch.int64),
            offset=torch.tensor([entry.image.offset for _, entry in entries], dtype=torch.int64),
            size=torch.tensor([entry.image.size for _, entry in entries], dtype=torch.int64),
            name_stop=torch.tensor([len(name) for name in names], dtype=torch.int64).cumsum(0),
            names=torch.frombuffer(bytearray(b"".join(names) or b"\0"), dtype=torch.uint8),
            labels={
                name: torch.tensor([entry.labels[name] for _, entry in entries], dtype=torch.int64)
                for name in label_sets
            },
        )

    def __len__(self) -> int:
        return len(self.shard)

    def name(self, sample: int) -> bytes:
        """Return the image's name in its shard."""
        start = int(self.name_stop[sample - 1]) if sample else 0
        return self.names[start : int(self.name_stop[sample])].numpy().tobytes()

    def formats(self, rows: Int[Tensor, "m"]) -> Counter[str]:
        """Count samples by the format that the extension of their image stands for."""
        if not len(rows):
            return Counter()
        ends = (self.name_stop[rows, None] + torch.arange(-5, 0)).clamp_min(0)
        tails, counts = self.names[ends].unique(dim=0, return_counts=True)
        found: Counter[str] = Counter()
        for tail, count in zip(tails.numpy(), counts.tolist(), strict=True):
            ending = tail.tobytes().rpartition(b".")[2].decode("ascii", "replace").lower()
            found[READ_AS.get(ending, ending.upper())] += count
        return found

    def all_names(self) -> list[bytes]:
        """Return ``name`` of every sample."""
        names, stops = self.names.numpy().tobytes(), self.name_stop.tolist()
        return [names[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def to_bytes(self) -> bytes:
        columns = {name: getattr(self, name) for name in ("shard", "offset", "size", "name_stop", "names")}
        return save(columns | {_LABELS + name: values for name, values in self.labels.items()})

    @classmethod
    def from_bytes(cls, data: bytes, shard_bytes: Sequence[int]) -> "Index":
        """Parse an index and check every location against the sizes of the shards.

        Raises:
            ValueError: the index is damaged or belongs to other shards.
        """
        try:
            columns = load(data)
            labels = {n.removeprefix(_LABELS): columns.pop(n) for n in list(columns) if n.startswith(_LABELS)}
            index = cls(**columns, labels=labels)
        except (safetensors.SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"it is no index of shards: {error}") from error
        columns = [index.shard, index.offset, index.size, index.name_stop, *labels.values()]
        if any(column.dtype != torch.int64 or column.shape != index.shard.shape for column in columns):
            raise ValueError("its columns don't have the types and lengths of an index")
        lengths = torch.tensor(shard_bytes, dtype=torch.int64)
        if len(index) and not (
            index.names.dtype == torch.uint8
            and index.names.dim() == 1
            and min(int(column.min()) for column in columns) >= 0
            and int(index.shard.max()) < len(lengths)
            and bool((index.offset <= lengths[index.shard] - index.size).all())
            and bool((index.name_stop.diff() >= 0).all())
            and int(index.name_stop[-1]) <= len(index.names)
        ):
            raise ValueError("it points outside of the shards")
        return index


def scan(path: Path, label_keys: Sequence[str] = ()) -> tuple[list[Entry], list[LeftOut]]:
    """Return the samples of a shard, and those that are skipped.

    As in webdataset, consecutive members whose names are equal up to the first dot of the file name are a sample.
    ``<key>.cls`` is its label ``class``, an integer as text.

    Differs from webdataset: where a sample has images only under types of several parts, as ``cat.1.jpg`` and
    ``cat.2.jpg``, each of them is a sample of its own; hidden files such as ``._cat.jpg`` are skipped unread.

    Args:
        label_keys: integers in ``<key>.json`` that are labels as well.

    Raises:
        RefusedArchive: the shard is damaged, or contains a member that no shard of images needs.
    """
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    keys: set[bytes] = set()

    def leave_out(name: bytes, reason: str) -> None:
        left_out.append(LeftOut(f"{path.name}/{printable(name)}", reason))

    def visible() -> Iterator[Member]:
        for member in members(path):
            if any(is_hidden(part) for part in member.name.decode("utf-8", "replace").split("/")):
                leave_out(member.name, "it is a hidden file")
            else:
                yield member

    with open(path, "rb", buffering=0) as file:
        for key, group in groupby(visible(), key=lambda member: _split(member.name, path)[0]):
            for sample in _samples(key, [(_split(member.name, path)[1], member) for member in group]):
                try:
                    if sample.reason or sample.key in keys:
                        raise ValueError(sample.reason or "its key is in the shard twice")
                    entries.append(_entry(sample.key, sample.files, label_keys, file.fileno()))
                    for extra in sample.extra_images:
                        leave_out(extra, f"it is a further image of the sample {printable(sample.key)}")
                except ValueError as error:
                    leave_out(sample.key, str(error))
                keys.add(sample.key)
    return entries, left_out


@dataclass(frozen=True)
class _Sample:
    """The members of a sample by type, ``reason`` where it can't be used, and the names of its unused images."""

    key: bytes
    files: Mapping[str, Member]
    reason: str | None
    extra_images: Sequence[bytes] = ()


def _samples(key: bytes, group: Sequence[tuple[str, Member]]) -> Iterator[_Sample]:
    """Yield the samples of a group of members with the same key: one, or one per image of a type with several parts."""
    files: dict[str, Member] = {}
    repeated: list[str] = []
    for kind, member in group:
        if files.setdefault(kind, member) is not member:
            repeated.append(kind)
    images = [kind for kind in files if _last(kind) in IMAGE_TYPES]
    if not images or any(kind in IMAGE_TYPES for kind in images):
        reason = f"it has two members .{repeated[0]}" if repeated else None
        used = next((kind for kind in images if kind in IMAGE_TYPES), None)
        yield _Sample(key, files, reason, [files[kind].name for kind in images if kind != used])
        return
    for kind in images:
        stem = kind.rpartition(".")[0]
        own = {other: files[name] for other in ("cls", "json") for name in (other, f"{stem}.{other}") if name in files}
        reason = f"it has two members .{_last(kind)}" if kind in repeated else None
        yield _Sample(files[kind].name.rpartition(b".")[0], {**own, _last(kind): files[kind]}, reason)


def _last(kind: str) -> str:
    return kind.rpartition(".")[2]


def _entry(key: bytes, files: Mapping[str, Member], label_keys: Sequence[str], file: int) -> Entry:
    image = next((files[kind] for kind in files if kind in IMAGE_TYPES), None)
    if image is None:
        raise ValueError(f"it has no image (.{', .'.join(IMAGE_TYPES)})")
    return Entry(key, image, _labels(files, label_keys, file))


def _split(name: bytes, path: Path) -> tuple[bytes, str]:
    """Split a member's name into key and type; the type may have several parts, as in ``a/7.left.jpg``."""
    folder, _, base = name.rpartition(b"/")
    stem, _, kind = base.partition(b".")
    kind = kind.decode("ascii", "replace").lower()
    if kind.rpartition(".")[2] not in MEMBER_TYPES:
        raise RefusedArchive(
            f"{path}: {printable(name)} is of a type that is not supported. Shards may contain ."
            f"{', .'.join(MEMBER_TYPES)}; pickles and compressed members are never opened: write shards without them"
        )
    return (folder + b"/" if folder else b"") + stem, kind


def _labels(files: Mapping[str, Member], label_keys: Sequence[str], file: int) -> dict[str, int]:
    found: dict[str, object] = {}
    if "cls" in files:
        if files["cls"].size > _MAX_CLS_BYTES:
            raise ValueError(f"its .cls has {files['cls'].size} bytes, more than {_MAX_CLS_BYTES}")
        text = os.pread(file, files["cls"].size, files["cls"].offset).strip()
        if not text.isdigit():
            raise ValueError(f"its .cls is no integer: {printable(text)!r}")
        found["class"] = int(text)
    if label_keys:
        document = _document(files, file)
        found |= {key: document.get(key) for key in label_keys}
    for key, value in found.items():
        if type(value) is not int or not 0 <= value < _MAX_LABEL:
            raise ValueError(f"its label {key} is {str(value)[:40]!r}, no integer from 0 to {_MAX_LABEL - 1}")
    return found


def _document(files: Mapping[str, Member], file: int) -> dict[str, object]:
    if "json" not in files:
        raise ValueError("it has no .json with labels")
    if files["json"].size > _MAX_JSON_BYTES:
        raise ValueError(f"its .json has {files['json'].size} bytes, more than {_MAX_JSON_BYTES}")
    try:
        document = json.loads(os.pread(file, files["json"].size, files["json"].offset))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is broken: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("its .json is no object")
    return document
