"""Tensors of a checkpoint as safetensors files, one a part and rank, behind torch.distributed.checkpoint.

torch's own storage keeps places of tensors in a pickle, which can execute code when read. Here every file says itself,
in its JSON header, which piece of which tensor it holds; a file of undivided tensors is a plain safetensors file.
"""

import hashlib
import json
import os
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

_PIECES = "pieces"  # key of a header: {tensor: [offsets of the piece, shape of the whole]}
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
    """A checkpoint that can't be used or written; the message says which, why and what to do."""


def key_of(part: str, name: str) -> str:
    """The key of a tensor in a state of several parts, e.g. ``method/encoder.norm.weight``."""
    return f"{part}/{name}"


def file_name(part: str, rank: int, world_size: int) -> str:
    """``method.safetensors``, or ``method_00001_of_00008.safetensors`` where several ranks write."""
    return f"{part}.safetensors" if world_size == 1 else f"{part}_{rank + 1:05d}_of_{world_size:05d}.safetensors"


def fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(1 << 24):
            digest.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


class SafetensorsWriter(StorageWriter):
    """Writes this rank's pieces into a folder, flushed and read back.

    Args:
        folder: made by the main rank; seen by all ranks.
        prepare: called on the main rank before.
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

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            self.prepare()
            self.folder.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        pieces: dict[str, dict[str, list[list[int]]]] = defaultdict(dict)
        items = defaultdict(list)
        for item in plan.items:
            part, _, name = item.index.fqn.partition("/")
            items[part].append(item)
            tensors[part][name] = planner.resolve_data(item)
            if item.tensor_data.chunk.sizes != item.tensor_data.size:
                pieces[part][name] = [list(item.tensor_data.chunk.offsets), list(item.tensor_data.size)]
        results = []
        for part, content in tensors.items():
            file = self.folder / file_name(part, self.rank, self.world_size)
            written = (file.name, _write(file, content, pieces[part]))
            results += [WriteResult(item.index, tensors[part][_name(item)].nbytes, written) for item in items[part]]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.publish(dict(result.storage_data for of_rank in results for result in of_rank))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class SafetensorsReader(StorageReader):
    """Reads pieces of tensors from safetensors files.

    Args:
        files: by the part whose tensors they hold; their content has been verified.

    Raises:
        CheckpointError: files that are no safetensors, or pieces that don't make up whole tensors.
    """

    def __init__(self, files: Mapping[str, Iterable[Path]]) -> None:
        self._places: dict[tuple[str, tuple[int, ...]], tuple[Path, str]] = {}
        self.tensors: dict[str, TensorStorageMetadata] = {}
        for part, paths in files.items():
            for path in paths:
                self._add(part, path)
        for key, tensor in self.tensors.items():
            pieces = sum(chunk.sizes.numel() for chunk in tensor.chunks)
            if pieces != tensor.size.numel():
                raise CheckpointError(f"{key} has {pieces} of its {tensor.size.numel()} values: a file is missing")

    def _add(self, part: str, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                pieces = json.loads((file.metadata() or {}).get(_PIECES, "{}"))
                for name in file.keys():  # noqa: SIM118, it is no dict
                    values = file.get_slice(name)
                    shape = torch.Size(values.get_shape())
                    offsets, whole = pieces.get(name, ([0] * len(shape), shape))
                    offsets, whole = torch.Size(offsets), torch.Size(whole)
                    self._add_piece(key_of(part, name), path, offsets, shape, whole, _DTYPES[values.get_dtype()])
        except (SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} holds no tensors that can be read here ({error!r})") from error

    def _add_piece(
        self, key: str, path: Path, offsets: torch.Size, shape: torch.Size, whole: torch.Size, dtype: torch.dtype
    ) -> None:
        properties = TensorProperties(dtype=dtype)
        tensor = self.tensors.setdefault(key, TensorStorageMetadata(properties, whole, []))
        fits = len(offsets) == len(shape) == len(whole) and all(
            offset >= 0 and offset + size <= total for offset, size, total in zip(offsets, shape, whole, strict=True)
        )
        if not fits or tensor.size != whole or tensor.properties.dtype != dtype or (key, offsets) in self._places:
            raise ValueError(f"{key}: a piece of shape {list(shape)} at {list(offsets)} does not fit the others")
        tensor.chunks.append(ChunkStorageMetadata(offsets, shape))
        self._places[key, offsets] = path, key.partition("/")[2]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(dict(self.tensors))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file = defaultdict(list)
        for item in plan.items:
            path, name = self._places[item.storage_index.fqn, item.storage_index.offset]
            by_file[path].append((name, item))
        for path, wanted in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name, item in wanted:
                    part = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    values = file.get_slice(name)[part] if part else file.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(values)
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _write(file: Path, tensors: Mapping[str, Tensor], pieces: Mapping[str, list[list[int]]]) -> Fingerprint:
    save_file(dict(tensors), file, metadata={_PIECES: json.dumps(pieces)} if pieces else None)
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
