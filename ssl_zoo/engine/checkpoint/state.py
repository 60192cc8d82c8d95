"""Checkpoints: one folder per step, published atomically and verified before any tensor is used.

``checkpoints/step_00001000/`` holds ``method.safetensors`` (every network of the method under its state-dict name) and
``optimizer.safetensors`` (moments as ``parameter name:moment``), each as one file per rank where several wrote it,
``state.json`` (hooks) and ``manifest.json`` (step, config, versions, size and SHA-256 of every file and of the manifest
itself). No file can execute code when read. Any number of ranks can read what any other number has written.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ssl_zoo.engine.checkpoint.folders import STEP_FOLDER, list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.storage import CheckpointError, SafetensorsReader, fingerprint, key_of
from ssl_zoo.engine.sharding import local

FORMAT = 2
_READABLE = (1, FORMAT)  # 1: always one file per part, and no SHA-256 of the manifest itself
_PART = re.compile(r"(method|optimizer)(_\d{5,}_of_\d{5,})?\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, whose tensors are read on demand.

    Attributes:
        hooks: states of hooks by name.
    """

    path: Path
    manifest: Mapping[str, Any]
    hooks: Mapping[str, Any]
    reader: SafetensorsReader

    @property
    def step(self) -> int:
        return self.manifest["step"]


def hashed_manifest(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as JSON, with the SHA-256 of its other entries."""
    return json.dumps({**manifest, "sha256": _sha256(manifest)}, indent=1)


def read_checkpoint(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """Verify every file of a checkpoint against its manifest and open it.

    Args:
        optimizer: whether to verify and open the optimizer's state, often twice as large as the networks, as well.

    Raises:
        CheckpointError: a file is missing, truncated, altered or no regular file, or the format is unknown.
    """
    manifest = _manifest(path)
    files: dict[str, list[Path]] = {"method": [], "optimizer": []}
    for name, expected in manifest["files"].items():
        part = _PART.fullmatch(name)
        if part is not None and part[1] == "optimizer" and not optimizer:
            continue
        _verify(path, name, expected)
        if part is not None:
            files[part[1]].append(path / name)
    try:
        hooks = json.loads((path / "state.json").read_text())
        return Checkpoint(path, manifest, hooks, SafetensorsReader(files))
    except ValueError as error:
        raise CheckpointError(f"{path} can't be used: {error}. {_alternatives(path)}") from error


def restore(checkpoint: Checkpoint, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a checkpoint into a method and, to resume training, its optimizer; of sharded tensors this rank's shard.

    Raises:
        CheckpointError: names, shapes or dtypes differ; nothing has been changed then.
    """
    saved: dict[str, dict[str, TensorStorageMetadata]] = {"method": {}, "optimizer": {}}
    for key, tensor in checkpoint.reader.tensors.items():
        part, _, name = key.partition("/")
        saved[part][name] = tensor
    own = method.state_dict()
    _require_same(own, {name: (t.size, t.properties.dtype) for name, t in saved["method"].items()}, checkpoint.path)
    wanted = {key_of("method", name): tensor for name, tensor in own.items()}
    moments = {} if optimizer is None else _moments(method, saved["optimizer"], checkpoint.path)
    for parameter, states in moments.items():
        optimizer.state[parameter] = {moment: value for moment, (_, value) in states.items()}
        wanted |= dict(states.values())
    _read(checkpoint, wanted)


def read_tensors(checkpoint: Checkpoint, part: str = "method") -> dict[str, Tensor]:
    """Read all tensors of a checkpoint's part by their state-dict names, full ones also where ranks wrote shards."""
    beginning = key_of(part, "")
    wanted = {
        key: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for key, tensor in checkpoint.reader.tensors.items()
        if key.startswith(beginning)
    }
    _read(checkpoint, wanted)
    return {key.removeprefix(beginning): tensor for key, tensor in wanted.items()}


def _read(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")
    dcp.load(
        {key: tensor for key, tensor in wanted.items() if local(tensor).numel()},
        storage_reader=checkpoint.reader,
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        no_dist=True,  # every rank reads its own shards from the same files
    )


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load tensors by their state-dict names into a module, all of them or none.

    Args:
        origin: source of the tensors, for error messages.

    Raises:
        CheckpointError: names, shapes or dtypes differ.
    """
    _require_same(module.state_dict(), {name: (t.shape, t.dtype) for name, t in tensors.items()}, origin)
    module.load_state_dict(tensors)


def _require_same(
    own: Mapping[str, Tensor], there: Mapping[str, tuple[torch.Size, torch.dtype]], origin: Path | str
) -> None:
    problems = [f"{name} is missing" for name in own if name not in there]
    problems += [f"{name} is not part of this model" for name in there if name not in own]
    problems += [
        f"{name} has shape {list(shape)}, this model {list(own[name].shape)}"
        for name, (shape, _) in there.items()
        if name in own and own[name].shape != shape
    ]
    problems += [
        f"{name} has dtype {dtype}, this model {own[name].dtype}"
        for name, (_, dtype) in there.items()
        if name in own and own[name].is_floating_point() != dtype.is_floating_point
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(f"{origin} is of another model than this run's: {shown}")


def _moments(
    method: nn.Module, saved: Mapping[str, TensorStorageMetadata], origin: Path
) -> dict[nn.Parameter, dict[str, tuple[str, Tensor]]]:
    """Allocate the state of each parameter as moment -> (key, tensor), sharded as the parameter where of its shape."""
    parameters, moments = dict(method.named_parameters()), {}
    for full_name, stored in saved.items():
        name, _, moment = full_name.rpartition(":")
        if name not in parameters:
            raise CheckpointError(f"{origin} has optimizer state of {name}, which is not part of this model")
        parameter = parameters[name]
        # Fused kernels expect step counters on the device of the parameter, unsharded.
        if stored.size == parameter.shape:
            value = torch.zeros_like(parameter.detach(), dtype=stored.properties.dtype)
        else:
            value = torch.zeros(stored.size, dtype=stored.properties.dtype, device=parameter.device)
        moments.setdefault(parameter, {})[moment] = key_of("optimizer", full_name), value
    return moments


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and verify what can be verified without the other files."""
    file = path / "manifest.json"
    if not file.is_file() or file.is_symlink():
        raise CheckpointError(f"{path} is no checkpoint: it has no manifest.json. {_alternatives(path)}")
    try:
        manifest = json.loads(file.read_text())
        known, files = manifest.get("format"), manifest["files"]
        if known not in _READABLE:
            raise CheckpointError(f"{path} has checkpoint format {known}, this version reads 1 and {FORMAT}")
        if known > 1 and manifest.pop("sha256") != _sha256(manifest):
            raise ValueError("it does not match its own SHA-256")
        step = manifest["step"]
        if not isinstance(step, int) or (STEP_FOLDER.fullmatch(path.name) and step_of(path) != step):
            raise ValueError(f"it is of step {step!r}")
        if "state.json" not in files or any(not {"bytes", "sha256"} <= expected.keys() for expected in files.values()):
            raise ValueError("it does not describe the files")
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}). {_alternatives(path)}") from error
    return manifest


def _verify(path: Path, name: str, expected: Mapping[str, Any]) -> None:
    file = path / name
    if Path(name).name != name or file.is_symlink():
        raise CheckpointError(f"{path}: {name!r} is no file of its own; links and paths are refused")
    if not file.is_file():
        raise CheckpointError(f"{path} is damaged: {name} is missing. {_alternatives(path)}")
    if file.stat().st_size != expected["bytes"]:
        sizes = f"{file.stat().st_size} bytes, not {expected['bytes']}"
        raise CheckpointError(f"{path} is damaged: {name} has {sizes}. {_alternatives(path)}")
    try:
        found = fingerprint(file)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error}). {_alternatives(path)}") from error
    if found != expected:
        raise CheckpointError(f"{path} is damaged: {name} does not match its SHA-256. {_alternatives(path)}")


def _sha256(manifest: Mapping[str, Any]) -> str:
    # Through JSON once, so that tuples become lists as they will be when read.
    plain = json.loads(json.dumps(manifest))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _alternatives(path: Path) -> str:
    others = [str(other) for other in list_checkpoints(path.parent.parent) if other != path]
    if not others:
        return "There is no other checkpoint; remove the run directory to start again."
    return f"To resume from an earlier one, pass --resume {others[-1]}"
