"""Storage of torch.distributed.checkpoint (DCP): safetensors files, one per part and rank.

The JSON header of a file names the shards that it holds; a file of full tensors alone is a plain safetensors file.
DCP's default storage keeps that index in a pickle, which can execute code when read. Its HuggingFaceStorageWriter and
-Reader (torch 2.14) need no pickle, but store no full shapes, so that a missing middle shard loads as unchanged values
without an error; they don't verify or hash files, and publish no folder atomically.
"""

import hashlib
import json
import operator
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ssl_zoo.io import fsync_path

Fingerprint = Mapping[str, Any]  # "bytes" and "sha256" of a file

_SHARDS = "pieces"  # key of a header: {tensor: [offsets of the shard, shape of the full tensor]}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A checkpoint can't be used or written; the message names it, the reason and the remedy."""


def key_of(part: str, name: str) -> str:
    """Return the key of a tensor in a state of several parts, e.g. ``method/encoder.norm.weight``."""
    return f"{part}/{name}"


def file_name(part: str, rank: int, world_size: int) -> str:
    """Return ``method.safetensors``, or ``method_00001_of_00008.safetensors`` where several ranks write."""
    return f"{part}.safetensors" if world_size == 1 else f"{part}_{rank + 1:05d}_of_{world_size:05d}.safetensors"


def fingerprint(file: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(1 << 24):
            digest.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that whoever may read the process's other new files can read; the library sets 0600."""
    with open(file, "wb") as empty:
        mode = stat.S_IMODE(os.fstat(empty.fileno()).st_mode)
    save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


class _AsPlanned:
    """The parts of DCP's storage interface that change nothing: plans stay as they are."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class SafetensorsWriter(_AsPlanned, StorageWriter):
    """Writes this rank's tensors and shards into a folder, flushes the files and reads them back.

    Args:
        folder: created by the main rank on a file system that all ranks share.
        prepare: called on the main rank before it creates the folder.
        publish: called on the main rank with the fingerprints of all ranks' files when they are complete.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        *,
        prepare: Callable[[], None],
        publish: Callable[[Mapping[str, Fingerprint]], None],
    ) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.prepare, self.publish = prepare, publish

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            self.prepare()
            self.folder.mkdir(parents=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        shards: dict[str, dict[str, list[list[int]]]] = defaultdict(dict)
        items = defaultdict(list)
        for item in plan.items:
            part, _, name = item.index.fqn.partition("/")
            items[part].append(item)
            tensors[part][name] = planner.resolve_data(item)
            if item.tensor_data.chunk.sizes != item.tensor_data.size:
                shards[part][name] = [list(item.tensor_data.chunk.offsets), list(item.tensor_data.size)]
        results = []
        for part, content in tensors.items():
            file = self.folder / file_name(part, self.rank, self.world_size)
            written = (file.name, _write(file, content, shards[part]))
            results += [WriteResult(item.index, tensors[part][_name(item)].nbytes, written) for item in items[part]]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.publish(dict(result.storage_data for of_rank in results for result in of_rank))


class SafetensorsReader(_AsPlanned, StorageReader):
    """Reads tensors and shards from safetensors files.

    Args:
        files: verified files by the part whose tensors they hold.

    Raises:
        CheckpointError: a file is no safetensors file, or shards don't make up full tensors.
    """

    def __init__(self, files: Mapping[str, Iterable[Path]]) -> None:
        self._places: dict[tuple[str, tuple[int, ...]], tuple[Path, str]] = {}
        self.tensors: dict[str, TensorStorageMetadata] = {}
        for part, paths in files.items():
            for path in paths:
                self._add(part, path)
        for key, tensor in self.tensors.items():
            count = sum(chunk.sizes.numel() for chunk in tensor.chunks)
            if count != tensor.size.numel():
                raise CheckpointError(f"{key} has {count} of its {tensor.size.numel()} values: a file is missing")

    def _add(self, part: str, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                shards = json.loads((file.metadata() or {}).get(_SHARDS, "{}"))
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    values = file.get_slice(name)
                    shape = torch.Size(values.get_shape())
                    offsets, size = map(torch.Size, shards.get(name, ([0] * len(shape), shape)))
                    self._add_shard(key_of(part, name), path, offsets, shape, size, _DTYPES[values.get_dtype()])
        except (SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} holds no tensors that can be read here ({error!r})") from error

    def _add_shard(
        self, key: str, path: Path, offsets: torch.Size, shape: torch.Size, size: torch.Size, dtype: torch.dtype
    ) -> None:
        properties = TensorProperties(dtype=dtype)
        tensor = self.tensors.setdefault(key, TensorStorageMetadata(properties, size, []))
        fits = len(offsets) == len(shape) == len(size) and all(
            offset >= 0 and offset + length <= total for offset, length, total in zip(offsets, shape, size, strict=True)
        )
        if not fits or tensor.size != size or tensor.properties.dtype != dtype or (key, offsets) in self._places:
            raise ValueError(f"{key}: a shard of shape {list(shape)} at {list(offsets)} does not fit the others")
        tensor.chunks.append(ChunkStorageMetadata(offsets, shape))
        self._places[key, offsets] = path, key.partition("/")[2]

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(dict(self.tensors))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file = defaultdict(list)
        for item in plan.items:
            path, name = self._places[item.storage_index.fqn, item.storage_index.offset]
            by_file[path].append((name, item))
        for path, wanted in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name, item in wanted:
                    ends = map(operator.add, item.storage_offsets, item.lengths)
                    slices = tuple(map(slice, item.storage_offsets, ends))
                    values = file.get_slice(name)[slices] if slices else file.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(values)
                    planner.commit_tensor(item, target)
        return _done(None)


def _write(file: Path, tensors: Mapping[str, Tensor], shards: Mapping[str, list[list[int]]]) -> Fingerprint:
    save_tensors(tensors, file, {_SHARDS: json.dumps(shards)} if shards else None)
    fsync_path(file)
    with safe_open(file, framework="pt") as written:
        for name, tensor in tensors.items():
            if not torch.equal(_bytes(written.get_tensor(name)), _bytes(tensor)):
                raise OSError(f"{file}: the file system returns other values of {name} than were written")
    return fingerprint(file)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _name(item: Any) -> str:
    return item.index.fqn.partition("/")[2]


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
