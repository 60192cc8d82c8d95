"""Parallel and restartable writing of shards, with the same bytes for any number of processes."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from webdataset.writer import TarWriter

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.samples import announce
from ssl_zoo.data.shards.index import Entry, Index, scan
from ssl_zoo.data.shards.inputs import members_of, unique_keys
from ssl_zoo.data.shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    FileInfo,
    LabelSet,
    LeftOut,
    Manifest,
    ShardInfo,
    file_info,
    read_manifest,
    shard_info,
)
from ssl_zoo.data.shards.tar import BLOCK
from ssl_zoo.data.sources.base import Source
from ssl_zoo.io import flush_to_disk, fsync_path, try_lock, write_atomic
from ssl_zoo.seeding import generator_for

_PROBED = 64  # samples whose sizes estimate how many fit into a shard
_LEFTOVER = re.compile(r"\.shard-\d+\.tar\.partial")


@dataclass(frozen=True)
class Job:
    """The inputs and options that determine the content of a folder of shards.

    Attributes:
        keys: one per sample of the source.
        placement: the samples in storage order: a fixed shuffle, so that every shard is a random sample of the data and
            sequential reading still mixes classes.
        bounds: shard k contains rows bounds[k] .. bounds[k+1] of the placement.
        plan: digest of the above, by which a later run recognises its own shards.
    """

    source: Source
    folder: Path
    resize_short: int | None
    label_sets: Mapping[str, Int[Tensor, "n"]]
    keys: Sequence[str]
    placement: Sequence[int]
    bounds: Sequence[int]
    plan: str

    @classmethod
    def of(cls, source: Source, folder: Path, *, shard_bytes: int, resize_short: int | None) -> "Job":
        """Plan shards with equal numbers of samples and about ``shard_bytes`` each."""
        num_samples, label_sets = len(source), dict(source.label_sets)
        probed = torch.linspace(0, num_samples - 1, min(num_samples, _PROBED)).round().long().tolist()
        mean_bytes = sum(_stored_bytes(source, sample, label_sets, resize_short) for sample in probed) / len(probed)
        num_shards = min(num_samples, max(1, -(-int(num_samples * mean_bytes) // shard_bytes)))
        keys = unique_keys(source.sample_name(sample) for sample in range(num_samples))
        placement = torch.randperm(num_samples, generator=generator_for("shards", num_samples)).tolist()
        bounds = [number * num_samples // num_shards for number in range(num_shards + 1)]
        plan = hashlib.sha256(json.dumps([resize_short, bounds, keys]).encode())
        for name, labels in label_sets.items():
            plan.update(name.encode() + labels.numpy().tobytes())
        return cls(source, folder, resize_short, label_sets, keys, placement, bounds, plan.hexdigest())

    def name(self, number: int) -> str:
        return f"shard-{number:05}.tar"

    def samples(self, number: int) -> Sequence[int]:
        return self.placement[self.bounds[number] : self.bounds[number + 1]]


def make_shards(
    source: Source,
    folder: Path,
    *,
    name: str,
    shard_bytes: int,
    resize_short: int | None = None,
    num_workers: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a source's samples as shards with manifest and index, or complete those of an interrupted call.

    Image files are copied unchanged unless they must be resized; pixels without a file become PNGs. Existing shards
    with the right hash are kept.

    Args:
        name: description of the source for the manifest.
        shard_bytes: approximate size of a shard.
        resize_short: images with a longer shorter side are resized to this many pixels.
        report: receives a line of progress per shard.

    Raises:
        ValueError: the folder contains other shards, another process writes to it, or a worker process died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_writer(folder):
        job = Job.of(source, folder, shard_bytes=shard_bytes, resize_short=resize_short)
        announce(source, source.take_notices())
        kept = _finished(job)
        for leftover in folder.iterdir():
            if _LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()
        shards = []
        for number, info in enumerate(_write_all(job, kept, num_workers)):
            state = "kept" if number in kept else "written"
            first = f", e.g. {info.left_out[0].name}: {info.left_out[0].reason}" if info.left_out else ""
            left_out = f", {info.num_left_out} left out{first}" if info.num_left_out else ""
            report(f"{folder / info.name}: {info.samples} samples, {info.bytes / 1e6:.1f} MB, {state}{left_out}")
            shards.append(info)
        if not any(shard.samples for shard in shards):
            first = shards[0].left_out[0]
            raise ValueError(f"none of {len(source)} images can be read; the first: {first.name}: {first.reason}")
        manifest = _manifest(job, name, shards)
        write_atomic(folder / MANIFEST_NAME, manifest.text())
        for number in range(len(shards)):
            _note(job, number).unlink(missing_ok=True)
    return manifest


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as file:
        if not try_lock(file):
            raise ValueError(f"another process writes shards to {folder}")
        yield


def _finished(job: Job) -> dict[int, ShardInfo]:
    """Find intact shards of this job that an earlier call wrote."""
    known: dict[int, tuple[str, ShardInfo]] = {}
    if (job.folder / MANIFEST_NAME).exists():
        manifest = read_manifest(str(job.folder / MANIFEST_NAME))
        known = {number: (manifest.plan, shard) for number, shard in enumerate(manifest.shards)}
    for number in range(len(job.bounds) - 1):
        if _note(job, number).exists():
            note = json.loads(_note(job, number).read_bytes())
            known[number] = (note.pop("plan"), shard_info(note))
    if any(plan != job.plan for plan, _ in known.values()):
        raise ValueError(
            f"{job.folder} holds shards of another source or of other options; choose another folder, or delete it"
        )
    return {number: shard for number, (_, shard) in known.items() if _is_intact(job.folder / shard.name, shard)}


def _is_intact(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_info(path).sha256 == shard.sha256


def _note(job: Job, number: int) -> Path:
    """Return the file that describes a finished shard until there is a manifest."""
    return job.folder / f".{job.name(number)}.json"


class _Shards(Dataset):
    """A dataset whose item k writes shard k, so that a DataLoader writes shards in parallel.

    Errors that a user can cause are returned as values: raised in a worker they would be wrapped in its traceback.
    """

    def __init__(self, job: Job, kept: Mapping[int, ShardInfo]) -> None:
        self.job, self.kept = job, kept

    def __len__(self) -> int:
        return len(self.job.bounds) - 1

    def __getitem__(self, number: int) -> ShardInfo | ValueError | OSError:
        if number in self.kept:
            return self.kept[number]
        try:
            return _write(self.job, number)
        except (ValueError, OSError) as error:
            return error


def _write_all(job: Job, kept: Mapping[int, ShardInfo], num_workers: int) -> Iterator[ShardInfo]:
    # Without its own generator the loader would sample a base seed from torch's global one.
    written = DataLoader(_Shards(job, kept), batch_size=None, num_workers=num_workers, generator=torch.Generator())
    try:
        for info in written:
            if isinstance(info, Exception):
                raise info
            yield info
    except RuntimeError as error:
        raise ValueError(
            f"a process that wrote shards died ({str(error).splitlines()[0]}), often for lack of memory. Give the same "
            "command again, with fewer --workers: finished shards are kept"
        ) from error


def _write(job: Job, number: int) -> ShardInfo:
    """Write one shard, which appears under its name only once it is complete."""
    final = job.folder / job.name(number)
    temporary = final.with_name(f".{final.name}.partial")
    left_out = []
    with open(temporary, "wb") as file:
        hashing = _Hashing(file)
        # Times and owners are constants, so that equal samples make equal archives.
        with TarWriter(hashing, encoder=False, mtime=0, compress=False) as tar:
            for sample in job.samples(number):
                try:
                    members = members_of(job.source, sample, job.label_sets, job.resize_short)
                except CorruptImage as error:
                    left_out.append(LeftOut(error.name, error.reason))
                    continue
                tar.write({"__key__": job.keys[sample], **members})
        file.flush()
        flush_to_disk(file.fileno())
    os.replace(temporary, final)
    fsync_path(job.folder)
    info = FileInfo(final.name, final.stat().st_size, hashing.digest.hexdigest())
    shard = ShardInfo.of(info, len(job.samples(number)) - len(left_out), left_out)
    write_atomic(_note(job, number), json.dumps({"plan": job.plan, **asdict(shard)}))
    return shard


class _Hashing:
    """A file wrapper that hashes the written bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _manifest(job: Job, name: str, shards: Sequence[ShardInfo]) -> Manifest:
    """Write the index of the finished shards and build their manifest, both from the tar headers alone."""
    sample_of = {key.encode("utf-8", "surrogateescape"): sample for sample, key in enumerate(job.keys)}
    found: list[tuple[int, int, Entry]] = []  # sample, shard, entry
    for number, shard in enumerate(shards):
        entries, left_out = scan(job.folder / shard.name)
        assert not left_out and len(entries) == shard.samples, "a shard contains the samples written to it"
        found += [(sample_of[entry.key], number, entry) for entry in entries]
    found.sort(key=lambda row: row[0])  # ids follow the source's, not the order of shards
    samples = torch.tensor([sample for sample, _, _ in found], dtype=torch.int64)
    labels = {label_set: values[samples] for label_set, values in job.label_sets.items()}
    index = replace(Index.of([(number, entry) for _, number, entry in found], ()), labels=labels)
    write_atomic(job.folder / INDEX_NAME, index.to_bytes())
    source = job.source
    return Manifest(
        source=name,
        plan=job.plan,
        shards=tuple(shards),
        index=file_info(job.folder / INDEX_NAME),
        image_size=source.image_size if job.resize_short is None else None,
        label_sets={
            label_set: LabelSet(source.num_classes, tuple(source.classes))
            if number == 0
            else LabelSet(int(values.max()) + 1)
            for number, (label_set, values) in enumerate(job.label_sets.items())
        },
    )


def _stored_bytes(source: Source, sample: int, label_sets: Mapping[str, Tensor], resize_short: int | None) -> int:
    """Return the size of a sample in a shard, with headers and padding."""
    try:
        members = members_of(source, sample, label_sets, resize_short)
    except CorruptImage:
        return 0
    return sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in members.values())
