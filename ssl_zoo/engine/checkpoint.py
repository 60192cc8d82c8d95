"""Checkpoints: a folder a step, whole or not there, verified before a single tensor is used.

``checkpoints/step_00001000/`` holds ``method.safetensors`` (every network of the method under its state-dict name),
``optimizer.safetensors`` (moments as ``parameter name:moment``), ``state.json`` (hooks) and ``manifest.json`` (step,
config, versions, size and SHA-256 of every file). Nothing in it can execute code when read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_zoo.io import publish_directory

FORMAT = 1
_STEP = re.compile(r"step_(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    path: Path
    manifest: Mapping[str, Any]
    method: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    hooks: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Published checkpoint folders of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step_*") if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(_STEP.fullmatch(path.name)[1]))


def save_checkpoint(
    run: Path,
    step: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    hooks: Mapping[str, Any],
    manifest: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the state after ``step`` steps, then remove all but the newest ``keep`` checkpoints and unfinished ones."""
    final = checkpoint_path(run, step)
    for leftover in final.parent.glob(".step_*"):
        shutil.rmtree(leftover)
    with publish_directory(final, final.with_name(f".{final.name}")) as folder:
        save_file({k: v.detach().contiguous() for k, v in method.state_dict().items()}, folder / "method.safetensors")
        save_file(_optimizer_tensors(method, optimizer), folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps(hooks))
        files = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
        content = {"format": FORMAT, "step": step, **manifest, "files": files}
        (folder / "manifest.json").write_text(json.dumps(content, indent=1))
    for old in list_checkpoints(run)[:-keep]:
        leaving = old.with_name(f".{old.name}.removed")
        os.replace(old, leaving)  # who is cut off while removing it leaves no half checkpoint behind
        shutil.rmtree(leaving)
    return final


def read_checkpoint(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint after comparing every file with its manifest.

    Args:
        optimizer: read the optimizer's moments too, which are often twice as large as the networks.

    Raises:
        CheckpointError: a file is missing, cut short or altered, or the format is unknown.
    """
    manifest_file = path / "manifest.json"
    if not manifest_file.is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no manifest.json. {_alternatives(path)}")
    try:
        manifest = json.loads(manifest_file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{manifest_file} is damaged ({error}). {_alternatives(path)}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} is damaged: {name} is missing. {_alternatives(path)}")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"{path} is damaged: {name} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}. "
                + _alternatives(path)
            )
        if _fingerprint(file) != expected:
            raise CheckpointError(f"{path} is damaged: {name} does not match its SHA-256. {_alternatives(path)}")
    return Checkpoint(
        path,
        manifest,
        load_file(path / "method.safetensors"),
        load_file(path / "optimizer.safetensors") if optimizer else {},
        json.loads((path / "state.json").read_text()),
    )


def restore(checkpoint: Checkpoint, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint's tensors into a method and, where training goes on, its optimizer.

    Raises:
        CheckpointError: names or shapes differ; nothing has been changed then.
    """
    load_tensors(method, checkpoint.method, str(checkpoint.path))
    if optimizer is None:
        return
    for name, parameter in method.named_parameters():
        prefix = f"{name}:"
        state = {k[len(prefix) :]: v for k, v in checkpoint.optimizer.items() if k.startswith(prefix)}
        if state:
            # Step counters stay where the fused kernels expect them; moments live beside their parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Put tensors under the names of its state dict into a module, all of them or none.

    Args:
        origin: where they come from, for the message.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not part of this model" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensor.shape)} there, {list(own[name].shape)} here"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(f"{origin} is of another model than this run's: {shown}")
    module.load_state_dict(tensors)


def _optimizer_tensors(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value.detach().contiguous()
        for name, parameter in method.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(1 << 24):
            digest.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _alternatives(path: Path) -> str:
    others = [str(other) for other in list_checkpoints(path.parent.parent) if other != path]
    if not others:
        return "No other checkpoint is there; remove the run directory to start anew."
    return f"To go on from an earlier one, pass --resume {others[-1]}"
